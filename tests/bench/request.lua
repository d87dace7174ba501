-- SPDX-License-Identifier: Apache-2.0
--
-- wrk ... -s request.lua URL -- PATH COUNT FILE [NAME VALUE]...
-- POST of the file's bytes with these header fields. '#' in PATH becomes 0 to COUNT-1, one after the other. The last
-- line of stdout is the result as JSON.

function init(args)
    local path, count, file = args[1], tonumber(args[2]), assert(io.open(args[3], "rb"))
    wrk.method = "POST"
    wrk.path = path:gsub("#", "0")
    wrk.body = file:read("*a")
    file:close()
    for i = 4, #args, 2 do wrk.headers[args[i]] = args[i + 1] end
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
