-- SPDX-License-Identifier: Apache-2.0
--
-- wrk ... -s request.lua URL -- METHOD PATH COUNT BODY
-- '#' in PATH becomes 0 to COUNT-1, one after the other. The last line of stdout is the result as JSON.

function init(args)
    local path, count = args[2], tonumber(args[3])
    wrk.method = args[1]
    wrk.path = path:gsub("#", "0")
    wrk.headers["Content-Type"] = "application/json"
    wrk.body = args[4]
    if count == 1 then return end -- without a request function wrk does not enter Lua for each request
    local requests, last = {}, 0
    for i = 1, count do
        requests[i] = wrk.format(nil, (path:gsub("#", tostring(i - 1))))
    end
    request = function()
        last = last % count + 1
        return requests[last]
    end
end

function done(summary, latency, _)
    local e = summary.errors
    local names = '{"requests": %d, "duration_us": %d, "bytes": %d, "p50_us": %d, "p99_us": %d, "max_us": %d, ' ..
        '"connect_errors": %d, "read_errors": %d, "write_errors": %d, "timeouts": %d, "bad_statuses": %d}'
    print("\n" .. string.format(names, summary.requests, summary.duration, summary.bytes, latency:percentile(50),
        latency:percentile(99), latency.max, e.connect, e.read, e.write, e.timeout, e.status))
end
