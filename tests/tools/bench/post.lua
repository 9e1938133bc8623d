-- POSTs signed bodies from a file, each once. Arguments: FILE HEADER START REPEAT SECONDS.
-- A line of FILE is "<signature> <body>"; reading begins at byte START. Every REPEAT-th request
-- (0: none) is one that was sent 40 requests before. At the file's end it begins anew and counts it.
-- After SECONDS nothing more is sent, while wrk runs on and what is under way gets its answer: then
-- what was acknowledged is known exactly. An empty request makes wrk leave a connection idle.
local ffi = require("ffi")
ffi.cdef[[
typedef struct { long seconds; long nanoseconds; } bench_time;
int clock_gettime(int clock, bench_time *time);
]]
local time = ffi.new("bench_time")
local MONOTONIC = 1

local threads = {}
local recent = {}
local verified = false

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  file = assert(io.open(args[1], "rb"))
  position = tonumber(args[3])
  every = tonumber(args[4])
  seconds = tonumber(args[5])
  file:seek("set", position)
  sent, wrapped = 0, 0
  before_signature = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.host ..
    "\r\nContent-Type: application/json\r\n" .. args[2] .. ": "
end

local function now()
  ffi.C.clock_gettime(MONOTONIC, time)
  return tonumber(time.seconds) + tonumber(time.nanoseconds) / 1e9
end

local function fresh()
  local line = file:read("*l")
  if not line then
    file:seek("set", 0)
    position = 0
    wrapped = wrapped + 1
    line = file:read("*l")
  end
  position = position + #line + 1
  local space = string.find(line, " ", 1, true)
  local body = string.sub(line, space + 1)
  return before_signature .. string.sub(line, 1, space - 1) ..
    "\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
end

function request()
  if not verified then  -- wrk asks once without sending, to see whether requests differ
    verified = true
    local start = position
    local unsent = fresh()
    position = start
    file:seek("set", start)
    return unsent
  end
  deadline = deadline or now() + seconds
  if now() >= deadline then return "" end
  sent = sent + 1
  if every > 0 and sent % every == 0 and sent > 64 then
    return recent[(sent - 40) % 64]
  end
  local made = fresh()
  if every > 0 then recent[sent % 64] = made end
  return made
end

function done(summary, latency, requests)
  local thread = threads[1]
  local some = summary.requests > 0
  io.write(string.format(
    'BENCH {"sent": %d, "position": %d, "wrapped": %d, "answered": %d, ' ..
    '"refused": %d, "p50": %.3f, "p99": %.3f}\n',
    thread:get("sent"), thread:get("position"), thread:get("wrapped"),
    summary.requests, summary.errors.status,
    some and latency:percentile(50) / 1000 or 0,
    some and latency:percentile(99) / 1000 or 0))
end
