-- Takes as many as wanted of several limits at once: what all of them allow, or nothing of any.
-- limit.py says the same in Python, for one process alone.
--
-- KEYS[1]  holds the generation of the counts
-- ARGV     prefix of the other keys; the time in seconds ("": Redis's own); wanted (0: only look; less: give
--          back); then for each limit: name, count, interval, burst, period, bucket (0: smooth), all in seconds
-- Returns  granted, the longest wait in seconds, the number of its limit, and what each limit has left then;
--          -1 alone when counts are asked for and lost

local GENERATION_SECONDS = 600
local prefix, now, wanted = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if not now then
  local clock = redis.call('TIME')
  now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
end
local generation = redis.call('GET', KEYS[1])

local function used_until(limit, used)
  if not used or used > now + limit.interval then return now - limit.interval end
  return math.max(used, now - limit.burst)
end

local function read_smooth(limit)
  limit.key = prefix .. ':rate:' .. limit.name
  limit.used = used_until(limit, tonumber(redis.call('GET', limit.key)))
  limit.left = limit.count > 0 and math.floor((now - limit.used) / limit.interval + 0.000001) or 0
end

local function read_counted(limit)
  limit.key = prefix .. ':count:' .. generation .. ':' .. limit.name
  limit.buckets, limit.stale, limit.sum = {}, {}, 0
  local first = math.floor((now - limit.period) / limit.bucket)
  local last = math.floor((now + limit.period) / limit.bucket)
  local fields = redis.call('HGETALL', limit.key)
  for i = 1, #fields, 2 do
    local bucket, count = tonumber(fields[i]), tonumber(fields[i + 1])
    if bucket < first or bucket > last then
      table.insert(limit.stale, fields[i])
    else
      table.insert(limit.buckets, {bucket, count})
      limit.sum = limit.sum + count
    end
  end
  limit.left = math.floor(limit.count) - limit.sum
end

local function move_smooth(limit, cells)
  limit.used = limit.used + cells * limit.interval
  local kept = math.ceil(limit.burst + limit.interval) + 60
  redis.call('SET', limit.key, string.format('%.17g', limit.used), 'EX', kept)
end

local function move_counted(limit, cells)
  if #limit.stale > 0 then redis.call('HDEL', limit.key, unpack(limit.stale)) end
  local bucket = math.floor(now / limit.bucket)
  local present = nil
  for _, one in ipairs(limit.buckets) do
    if one[1] == bucket then present = one end
  end
  if not present then
    present = {bucket, 0}
    table.insert(limit.buckets, present)
  end
  local before = present[2]
  present[2] = math.max(0, before + cells)
  limit.sum = limit.sum + present[2] - before
  redis.call('HSET', limit.key, string.format('%d', bucket), present[2])
  redis.call('EXPIRE', limit.key, limit.period + 2 * limit.bucket)
end

local function wait_smooth(limit)
  return math.max(0, limit.used + limit.interval - now)
end

local function wait_counted(limit)
  local over = limit.sum + 1 - math.floor(limit.count)
  if over <= 0 then return 0 end
  table.sort(limit.buckets, function(a, b) return a[1] < b[1] end)
  for _, one in ipairs(limit.buckets) do
    over = over - one[2]
    if over <= 0 then return (one[1] + 1) * limit.bucket + limit.period - now end
  end
  return limit.period
end

local limits, granted = {}, math.max(0, wanted)
for i = 4, #ARGV, 6 do
  local limit = {
    name = ARGV[i], count = tonumber(ARGV[i + 1]), interval = tonumber(ARGV[i + 2]),
    burst = tonumber(ARGV[i + 3]), period = tonumber(ARGV[i + 4]), bucket = tonumber(ARGV[i + 5]),
  }
  if limit.bucket == 0 then
    read_smooth(limit)
  elseif generation then
    read_counted(limit)
    redis.call('EXPIRE', KEYS[1], GENERATION_SECONDS)
  else
    return {-1}
  end
  granted = math.max(0, math.min(granted, limit.left))
  table.insert(limits, limit)
end

local cells = wanted > 0 and granted or wanted
local longest, tightest, answer = 0, 0, {}
for number, limit in ipairs(limits) do
  local smooth = limit.bucket == 0
  if cells ~= 0 then (smooth and move_smooth or move_counted)(limit, cells) end
  local wait = (smooth and wait_smooth or wait_counted)(limit)
  if tightest == 0 or wait > longest then longest, tightest = wait, number end
  table.insert(answer, limit.left - granted)
end
return {granted, string.format('%.17g', longest), tightest, unpack(answer)}
