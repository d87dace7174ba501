# SPDX-License-Identifier: Apache-2.0
"""What is printed: tables in Markdown, row by row as they come."""


def number(value, digits=0):
    return "" if value is None else f"{value:.{digits}f}"


def scaled(key, divisor, digits):
    return lambda row: number(row[key] / divisor if row.get(key) is not None else None, digits)


def significant(key):
    """Three digits of a figure that may be small or large."""
    def cell(row):
        value = row.get(key)
        return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return cell


def share(value):
    return f"{value:.0f}x" if value >= 10 else f"{value:.2f}x" if value >= 0.1 else f"{value:.1g}x"


def spread(row):
    return f"{share(min(row['ratios']))} to {share(max(row['ratios']))}" if "ratios" in row else ""


# Head, alignment, cell of a row.
CONTEST_COLUMNS = (
    ("call", "---", lambda row: row["workload"]),
    ("connections", "--:", lambda row: str(row["connections"])),
    ("server", "---", lambda row: row["title"]),
    ("requests/s", "--:", significant("requests_per_s")),
    ("of the first", "--:", lambda row: share(row["ratio"]) if "ratio" in row else ""),
    ("(least to most)", ":-:", spread),
    ("p50 ms", "--:", scaled("p50_us", 1e3, 2)),
    ("p99 ms", "--:", scaled("p99_us", 1e3, 2)),
    ("MB/s", "--:", significant("mb_per_s")),
    ("CPU us/request", "--:", significant("cpu_us")),
    ("CPU s/GB", "--:", significant("cpu_s_per_gb")),
    ("resident MiB", "--:", scaled("resident_bytes", 2**20, 0)),
)
STARVATION_COLUMNS = (
    ("paced call", "---", lambda row: row["probe"]),
    ("beside", "---", lambda row: row["beside"]),
    ("its requests/s", "--:", significant("background_per_s")),
    ("p50 ms", "--:", scaled("p50_ms", 1, 2)),
    ("p99 ms", "--:", scaled("p99_ms", 1, 2)),
    ("most ms", "--:", scaled("max_ms", 1, 1)),
)
MEMORY_COLUMNS = (
    ("call", "---", lambda row: row["call"]),
    ("form", "---", lambda row: row["title"]),
    ("body MiB", "--:", scaled("body_bytes", 2**20, 1)),
    ("tensors MiB", "--:", scaled("tensor_bytes", 2**20, 1)),
    ("reply MiB", "--:", scaled("reply_bytes", 2**20, 1)),
    ("peak MiB", "--:", scaled("peak_bytes", 2**20, 1)),
    ("multiple", "--:", lambda row: share(row["multiple"])),
    ("of", "---", lambda row: "body" if row["binary"] else "body, tensors, reply"),
)


def print_facts(facts):
    print(f"{facts['cpu']}, {facts['processors']} processors shared with wrk (1 thread), load {facts['load']:.1f} "
          f"at the start; medians of {facts['rounds']} rounds of {facts['duration_s']} s; fdatasync "
          f"{facts['fdatasync_ms']:.2f} ms", flush=True)


def print_table(columns, rows):
    """Prints the rows while they are made; returns them."""
    kept = []
    for row in rows:
        if not kept:
            print("\n|", " | ".join(head for head, _, _ in columns), "|")
            print("|" + "|".join(align for _, align, _ in columns) + "|")
        kept.append(row)
        if "skipped" in row:
            cells = [cell(row) for _, _, cell in columns[:3] if row.get("workload")] or [row["call"], row["title"]]
            cells += [f"skipped: {row['skipped']}".replace("|", "/").replace("\n", " ")]
            cells += [""] * (len(columns) - len(cells))
        else:
            cells = [cell(row) for _, _, cell in columns]
        print("|", " | ".join(cells), "|", flush=True)
    return kept


def figure(value, unit):
    return f"{value:.3g}{unit}" if value < 100 else f"{value:.0f}{unit}"


def print_targets(verdicts):
    print()
    for v in verdicts:
        limit = f"at {v['sense']} {v['limit']}{v['unit']}"
        if v["verdict"] == "skipped":
            print(f"target: {v['target']}, {limit}: skipped: {v['why']}")
            continue
        where = f" ({v['where']})" if v["where"] else ""
        print(f"target: {v['target']}, {limit}: {v['verdict']}, {figure(v['figure'], v['unit'])}{where}")
