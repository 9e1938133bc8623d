-- GETs a path. Arguments: FIRST COUNT HEADER. With COUNT above 0 the path is followed by a number,
-- FIRST to FIRST + COUNT - 1, at random.
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  first, count = tonumber(args[1]), tonumber(args[2])
  sent = 0
  before = "GET " .. wrk.path
  after = " HTTP/1.1\r\nHost: " .. wrk.host .. "\r\n" .. args[3] .. "\r\n\r\n"
end

function request()
  sent = sent + 1
  if count > 0 then return before .. (first + math.random(0, count - 1)) .. after end
  return before .. after
end

function done(summary, latency, requests)
  local some = summary.requests > 0
  io.write(string.format(
    'BENCH {"sent": %d, "answered": %d, "refused": %d, "p50": %.3f, "p99": %.3f}\n',
    threads[1]:get("sent"), summary.requests, summary.errors.status,
    some and latency:percentile(50) / 1000 or 0, some and latency:percentile(99) / 1000 or 0))
end
