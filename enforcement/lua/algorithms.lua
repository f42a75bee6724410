-- The algorithms, each a table of the same small functions over a state:
--   read(s, spec, key, now, value)
--                              fills s with the state of a counter, brought forward to `now`; spec: see spec_of below; value: what
--                              the key holds, false: nothing, nil: not known. s.room is what fits now: perhaps a fraction, and
--                              negative after an overdraft. false: `now` lies outside the boundaries in spec.b; nil: the counter
--                              was lost
--   wait(s, cost)              microseconds until `cost` <= cap fits, if nothing else is charged; -2: never
--   reset(s)                   microseconds until nothing of what was charged is felt any more; -2: never
--   mark(s)                    what names the window that a charge falls into, for a later settlement
--   add(s, cost, id)           charges the state; cost >= 1
--   amend(s, delta, mark, id)  corrects an earlier charge by `delta` permits; false: nothing of it is felt any more
--   write(key, s, slack)       stores the state, with a time to live of what the window needs + slack milliseconds
-- The same functions stand in enforcement/model/algorithms.py; a property test holds the two together. Numbers are doubles, exact to
-- 2^53. An instant before the last charge of a counter counts as the instant of that charge (s.now). If that lies more than a
-- window ahead, the clock was set back: then what was charged counts as charged now (s.behind), for nobody shall be blocked until
-- the clock has caught up. Such a state is to be written even if nothing is charged: only that way it is found older later.
-- Tables are used again by later calls, for counters of any algorithm: `read` sets every field that its algorithm looks at.

local NEVER = -2
local TEN_YEARS_MS = 315360000000

-- Counters that are few numbers are kept as doubles, big-endian: a third of the time that text takes, and less room.
--
-- A global is looked up by name on each use, and a decision uses these some thirty times. They do not exist yet while the
-- library is loaded, so the first call binds them.
local call, pack, unpack_doubles, floor, ceil, max, min, format, sub, to_number, spread

local function bind()
  call, pack, unpack_doubles = redis.call, struct.pack, struct.unpack
  floor, ceil, max, min, format = math.floor, math.ceil, math.max, math.min, string.format
  sub, to_number, spread = string.sub, tonumber, unpack
end

local function put(key, packed, ttl_us, slack)
  call('SET', key, packed, 'PX', ceil(ttl_us / 1000) + slack)
end

-- See that a key whose value was changed in place still has an end, which somebody may have taken from it. To ask each time costs a
-- quarter of the whole call, so the first charge in each second of the clock does: if s.now % 1000000 < s.now - s.last.
local function keep_ending(key, s, ends, slack) call('PEXPIRE', key, ceil((ends - s.now) / 1000) + slack, 'NX') end

-- fixed_window. a: length in us, 0 for a lifetime. b: nothing, or four boundaries of a calendar.
-- Value: used, end (0 for a lifetime), last.
local fixed = {}

-- Return the end of the window that holds `now`, and its length.
local function window_end(now, a, b)
  if a > 0 then return now - now % a + a, a end
  if #b == 0 then return 0 end
  for i = 1, #b do
    if now < b[i] then return i > 1 and b[i], b[i] - (b[i - 1] or 0) end
  end
  return false
end

function fixed.read(s, spec, key, now, value)
  local cap = spec.cap
  s.cap = cap
  if value == nil then value = call('GET', key) end
  if value then
    local used, ends, last = unpack_doubles('>ddd', value)
    local behind = false
    if now < last then
      local present, length = window_end(now, spec.a, spec.b)
      if not present then return false end
      behind = ends ~= 0 and last - now > length
      if behind then ends = present else now = last end
    end
    if ends == 0 or now < ends then
      s.now, s.used, s.ends, s.kept, s.behind, s.room, s.last = now, used, ends, not behind, behind, cap - used, last
      return true
    end
  end
  local ends = window_end(now, spec.a, spec.b)
  s.now, s.used, s.ends, s.kept, s.behind, s.room = now, 0, ends, false, false, cap
  return ends
end

function fixed.reset(s)
  if s.ends == 0 then return NEVER end
  return s.ends - s.now
end

fixed.wait = fixed.reset

function fixed.mark(s) return s.ends end

function fixed.add(s, cost)
  s.used = s.used + cost
  s.room = s.cap - s.used
end

function fixed.amend(s, delta, mark)
  if s.ends ~= mark then return false end
  s.used = max(0, s.used + delta)
  return true
end

function fixed.write(key, s, slack)
  local packed = pack('>ddd', s.used, s.ends, s.now)
  if not s.kept then
    put(key, packed, s.ends == 0 and TEN_YEARS_MS * 1000 or s.ends - s.now, slack)
    return
  end
  call('SETRANGE', key, 0, packed) -- what stands behind these numbers stays; see checkpoint.lua
  -- A key ends with its window already, and that is left alone; one of a lifetime ends when nothing was charged for long.
  if s.ends == 0 then
    call('PEXPIRE', key, TEN_YEARS_MS)
  elseif s.now % 1000000 < s.now - s.last then
    keep_ending(key, s, s.ends, slack)
  end
end

-- A fixed_window whose counters outlive the store; see checkpoint.lua. Value: as above, and the stamp of its last checkpoint if
-- it has one.
local durable = {reset = fixed.reset, wait = fixed.wait, mark = fixed.mark, add = fixed.add, amend = fixed.amend}
local NAME_LENGTH, WHOLE = 26, 'whole' -- of the last part of a counter's key; a member of the set beside it

local function dirty_beside(key) return sub(key, 1, -NAME_LENGTH - 1) .. 'changed' end

-- nil: the store lost its counters, and what this one held is not known.
function durable.read(s, spec, key, now, value)
  local known = fixed.read(s, spec, key, now, value)
  if known and not s.kept and call('SISMEMBER', dirty_beside(key), WHOLE) == 0 then return nil end
  return known
end

function durable.write(key, s, slack)
  fixed.write(key, s, slack)
  call('SADD', dirty_beside(key), sub(key, -NAME_LENGTH))
end

-- A fixed_window of the calendar that carries what it leaves into the next one. cap: the quota and the most that is carried. a: the
-- quota. b: four boundaries, the number of the window between the second and the third, and how long a counter is kept after the end of
-- its window, in us. Value: used, end, last and stamp as of a durable counter; then the number of the window; the number of the last
-- one before it that was charged (its own if none is known), what that one had and what was used of it; how long it is kept; and what
-- its window has. The last two are for checkpoints.
local rolling = {}

-- Return the end, the length and the number of the window that holds `now`; false: it lies outside.
local function numbered_window(now, b)
  if now < b[1] then return false end
  for i = 2, 4 do
    if now < b[i] then return b[i], b[i] - b[i - 1], b[5] + i - 3 end
  end
  return false
end

-- Return what is carried into the window of this number. A window that was not charged adds its quota.
local function carried(s, number)
  return min(s.cap - s.quota, max(0, s.had - s.spent) + max(0, number - s.before - 1) * s.quota)
end

function rolling.read(s, spec, key, now, value)
  local b, quota = spec.b, spec.a
  local present, length, number = numbered_window(now, b)
  if not present then return false end
  local used, ends, last, stamp, own, before, had, spent = 0, 0, now, 0, nil, nil, 0, 0
  if value == nil then value = call('GET', key) end
  s.behind = false
  if value then
    used, ends, last = unpack_doubles('>ddd', value)
    if #value >= 32 then stamp = unpack_doubles('>d', value, 25) end
    if #value >= 80 then own, before, had, spent = unpack_doubles('>dddd', value, 33) end
    if last - now > length then -- the clock was set back: what was charged counts as charged now
      if own then own, before = number, number - (own - before) end
      ends, s.behind = present, true
    elseif now < last then
      now = last
      present, length, number = numbered_window(now, b)
      if not present then -- a month after a longer one: the last charge may lie in the window after the next
        if now >= ends then return false end
        number = b[5] + 2
      end
    end
  end
  s.cap, s.quota, s.now, s.life, s.known = spec.cap, quota, now, b[6], true
  if now < ends then -- a counter of a limit that had no rollover carries nothing
    own = own or number
    s.used, s.ends, s.stamp, s.number, s.before, s.had, s.spent = used, ends, stamp, own, before or own, had, spent
  elseif own and now - ends < b[6] then
    s.before, s.had, s.spent = before, had, spent
    if used > 0 or before == own then s.had, s.spent, s.before = quota + carried(s, own), used, own end
    s.used, s.ends, s.stamp, s.number = 0, present, stamp, max(number, own + 1)
  else
    s.used, s.ends, s.stamp, s.number, s.before, s.had, s.spent, s.known = 0, present, 0, number, number, 0, 0, false
  end
  s.room = quota + carried(s, s.number) - s.used
  return true
end

rolling.reset = fixed.reset

-- A cost above the quota may need what several windows leave, and then waits longer. A new counter leaves nothing.
function rolling.wait(s, cost)
  if not s.known and cost > s.quota then return NEVER end
  return s.ends - s.now
end

function rolling.mark(s) return s.number end

function rolling.add(s, cost)
  s.known = true
  s.used = s.used + cost
  s.room = s.room - cost
end

-- A charge of an earlier window changes what was carried since, unless a later one was charged before the present.
function rolling.amend(s, delta, mark)
  if mark == s.number or mark == s.ends then -- the end names it for what was charged before the limit had a rollover
    s.used = max(0, s.used + delta)
  elseif mark == s.before then
    s.spent = max(0, s.spent + delta)
  elseif delta > 0 and mark > s.before and mark < s.number then -- it was charged elsewhere, and the store did not know
    s.had, s.spent, s.before = s.quota + carried(s, mark), delta, mark
  else
    return false
  end
  s.room = s.quota + carried(s, s.number) - s.used
  return true
end

function rolling.write(key, s, slack)
  local has = s.quota + carried(s, s.number)
  local packed = pack('>dddddddddd', s.used, s.ends, s.now, s.stamp, s.number, s.before, s.had, s.spent, s.life, has)
  put(key, packed, s.ends - s.now + s.life, slack)
end

-- The same whose counters outlive the store.
local durable_rolling = {
  reset = fixed.reset, wait = rolling.wait, mark = rolling.mark, add = rolling.add, amend = rolling.amend,
}

function durable_rolling.read(s, spec, key, now, value)
  local known = rolling.read(s, spec, key, now, value)
  if known and not s.known and call('SISMEMBER', dirty_beside(key), WHOLE) == 0 then return nil end
  return known
end

function durable_rolling.write(key, s, slack)
  rolling.write(key, s, slack)
  call('SADD', dirty_beside(key), sub(key, -NAME_LENGTH))
end

-- Return used, end, last and stamp (0: none) of a durable counter, and of one that carries the other numbers, too; nil if there is none,
-- or something else in its place.
local function durable_state(key)
  local value = redis.pcall('GET', key)
  if type(value) ~= 'string' or #value < 24 then return nil end
  local used, ends, last = unpack_doubles('>ddd', value)
  local stamp = 0
  if #value >= 32 then stamp = unpack_doubles('>d', value, 25) end
  if #value < 80 then return used, ends, last, stamp end
  return used, ends, last, stamp, unpack_doubles('>dddddd', value, 33)
end

-- sliding_window. a: length in us. Value: current, previous, last.
local sliding = {}

-- The permits of the previous window leave one by one, as if evenly spaced and the first of them at its start: a client that
-- keeps the limit's pace finds room for each request.
local function sliding_room(s)
  if s.previous == 0 then return s.cap - s.current end
  return s.cap - s.current - ceil(s.previous * (s.start + s.length - s.now) / s.length) + 1
end

-- Return how far into a window all but `kept` permits of the one before it have left.
local function all_but(kept, previous, length)
  if previous <= kept then return 0 end
  return ceil((previous - kept) * length / previous)
end

function sliding.read(s, spec, key, now, value)
  local a, current, previous, kept, behind = spec.a, 0, 0, false, false
  if value == nil then value = call('GET', key) end
  if value then
    local known, before, last = unpack_doubles('>ddd', value)
    behind = last - now > a
    s.last = last
    if now < last and not behind then now = last end
    local passed = (now - now % a) - (last - last % a)
    if behind then
      current, previous = known, before
    elseif passed == 0 then
      current, previous, kept = known, before, known > 0
    elseif passed == a then
      previous = known
    end
  end
  s.now, s.start, s.length, s.cap = now, now - now % a, a, spec.cap
  s.current, s.previous, s.kept, s.behind = current, previous, kept, behind
  s.room = sliding_room(s)
  return true
end

function sliding.wait(s, cost)
  local at, fading, room = s.start, s.previous, s.cap - cost - s.current
  if room < 0 then -- not in this window: in the next one, when what is current now fades
    at, fading, room = s.start + s.length, s.current, s.cap - cost
  end
  return max(1, at + all_but(room + 1, fading, s.length) - s.now) -- where doubles are not exact, an instant may look past
end

function sliding.reset(s)
  if s.current > 0 then return s.start + s.length + all_but(1, s.current, s.length) - s.now end
  return max(0, s.start + all_but(1, s.previous, s.length) - s.now)
end

function sliding.mark(s) return s.start end

function sliding.add(s, cost)
  s.current = s.current + cost
  s.room = sliding_room(s)
end

function sliding.amend(s, delta, mark)
  if mark == s.start then
    s.current = max(0, s.current + delta)
  elseif mark == s.start - s.length then
    s.previous = max(0, s.previous + delta)
  else
    return false
  end
  return true
end

function sliding.write(key, s, slack)
  local packed = pack('>ddd', s.current, s.previous, s.now)
  if s.kept then
    call('SETRANGE', key, 0, packed)
    if s.now % 1000000 < s.now - s.last then keep_ending(key, s, s.start + 2 * s.length, slack) end
  else
    put(key, packed, s.start + 2 * s.length - s.now, slack)
  end
end

-- sliding_log. a: length in us. A sorted set of instants; a member is 'total:cost', total being the running sum of costs
-- with this one, in 16 digits. The sum of any stretch is a difference of two totals, so a decision reads three members.
local log = {}

local function entry(member)
  local total, cost = string.match(member, '^(%d+):(%d+)$')
  return to_number(total), to_number(cost)
end

local function after(instant) return '(' .. format('%.0f', instant) end

function log.read(s, spec, key, now)
  local cap, a = spec.cap, spec.a
  s.key, s.length, s.cap = key, a, cap
  s.used, s.total, s.last, s.delta, s.oldest, s.pending, s.behind = 0, 0, false, false, false, 0, false
  local newest = call('ZREVRANGE', key, 0, 0, 'WITHSCORES')
  if newest[1] then
    s.last = to_number(newest[2])
    s.behind = s.last - now > a
    local at = max(now, s.last)
    local oldest = call('ZRANGEBYSCORE', key, after(at - a), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if oldest[1] then
      local total, cost = entry(oldest[1])
      s.total = entry(newest[1])
      s.used = s.total - total + cost
      s.oldest, s.oldest_total = to_number(oldest[2]), total
    end
    if s.behind then -- all that is felt becomes one entry
      s.last, s.oldest, s.oldest_total, s.total = now, now, s.used, s.used
    else
      now = at
    end
  end
  s.now = now
  s.room = cap - s.used
  return true
end

-- Search the rank of the first live entry whose leaving makes enough room; totals grow with the rank. Mostly it is the oldest.
function log.wait(s, cost)
  local needed = s.total + cost - s.cap
  if s.oldest and needed <= s.oldest_total then return s.oldest + s.length - s.now end
  local low = call('ZCOUNT', s.key, '-inf', format('%.0f', s.now - s.length))
  local high = call('ZCARD', s.key) - 1
  while low < high do
    local middle = floor((low + high) / 2)
    if entry(call('ZRANGE', s.key, middle, middle)[1]) >= needed then high = middle else low = middle + 1 end
  end
  return to_number(call('ZRANGE', s.key, low, low, 'WITHSCORES')[2]) + s.length - s.now
end

function log.reset(s)
  if s.used == 0 then return 0 end
  return s.last + s.length - s.now
end

function log.mark(s) return s.now end

function log.add(s, cost)
  s.pending = cost
  s.used = s.used + cost
  s.room = s.cap - s.used
  s.last = s.now
end

local function log_put(key, at, total, cost)
  call('ZADD', key, format('%.0f', at), format('%016.0f:%.0f', total, cost))
end

-- Write anew all entries from `from` on, the one at `from` changed by `delta`. Costs what has been charged since.
local function log_rewrite(key, from, delta, total)
  local entries = call('ZRANGEBYSCORE', key, format('%.0f', from), '+inf', 'WITHSCORES')
  call('ZREMRANGEBYSCORE', key, format('%.0f', from), '+inf')
  if not entries[1] or to_number(entries[2]) > from then
    if delta > 0 then
      total = total + delta
      log_put(key, from, total, delta)
    end
    delta = 0
  end
  for i = 1, #entries, 2 do
    local _, cost = entry(entries[i])
    local at = to_number(entries[i + 1])
    if at == from and delta ~= 0 then
      local changed = max(0, cost + delta)
      delta = delta - (changed - cost)
      cost = changed
    end
    if cost > 0 then
      total = total + cost
      log_put(key, at, total, cost)
    end
  end
end

function log.amend(s, delta, mark)
  if s.behind or mark <= s.now - s.length then return false end
  s.delta, s.from = delta, mark
  return true
end

function log.write(key, s, slack)
  if s.behind then
    call('UNLINK', key)
    log_put(key, s.now, s.total, s.total)
  else
    call('ZREMRANGEBYSCORE', key, '-inf', format('%.0f', s.now - s.length))
  end
  if s.delta then
    local before = call('ZREVRANGEBYSCORE', key, after(s.from), '-inf', 'LIMIT', 0, 1)
    log_rewrite(key, s.from, s.delta, before[1] and entry(before[1]) or 0)
  elseif s.pending > 0 then
    if s.total + s.pending > 9000000000000000 then -- totals are about to leave the exact numbers: count anew
      log_rewrite(key, 0, 0, 0)
      s.total, s.oldest = s.used - s.pending, false
    end
    s.total = s.total + s.pending
    log_put(key, s.now, s.total, s.pending)
  end
  call('PEXPIRE', key, ceil(s.length / 1000) + slack)
end

-- token_bucket. cap: capacity in permits. a: units that come back each us. b: units a permit has. With both cut down by their
-- common divisor every amount is a whole number. Value: level, unit, last, since: what is taken out of the bucket, in units,
-- and the instant from which it has not been full.
local bucket = {}

function bucket.read(s, spec, key, now, value)
  local cap, a, unit, level, since, idle, behind = spec.cap, spec.a, spec.b[1], 0, now, false, false
  if value == nil then value = call('GET', key) end
  if value then
    local kept, kept_unit, last, kept_since = unpack_doubles('>dddd', value)
    if now < last then
      behind = (last - now) * a > cap * unit -- the time in which an empty bucket fills is its window
      if behind then last, kept_since = now, now else now = last end
    end
    if unit ~= kept_unit then kept = ceil(kept * unit / kept_unit) end
    level, since = kept - (now - last) * a, kept_since
    if level <= 0 then idle, level, since = -level, 0, now end
  end
  s.now, s.level, s.cap, s.rate, s.unit, s.since, s.idle, s.behind = now, level, cap, a, unit, since, idle, behind
  s.room = (cap * unit - level) / unit
  return true
end

function bucket.wait(s, cost)
  if s.rate == 0 then return NEVER end
  return ceil((s.level + cost * s.unit - s.cap * s.unit) / s.rate)
end

function bucket.reset(s)
  if s.level == 0 then return 0 end
  if s.rate == 0 then return NEVER end
  return ceil(s.level / s.rate)
end

function bucket.mark(s) return s.now end

function bucket.add(s, cost)
  s.level = s.level + cost * s.unit
  s.room = (s.cap * s.unit - s.level) / s.unit
end

-- A refund gives back nothing that time has given back already; a late debt has been paid for as long as the bucket stood full.
function bucket.amend(s, delta, mark)
  local units = delta * s.unit
  if delta < 0 then
    if mark < s.since or s.level == 0 then return false end
    s.level = max(0, s.level + units)
    return true
  end
  if s.level == 0 then
    units = units - min(s.idle or math.huge, max(0, s.now - mark) * s.rate)
  end
  if units <= 0 then return false end
  if s.level == 0 then s.since = min(mark, s.now) end
  s.level = s.level + units
  return true
end

function bucket.write(key, s, slack)
  put(key, pack('>dddd', s.level, s.unit, s.now, s.since), max(s.rate == 0 and 86400000000 or s.level / s.rate, 1000), slack)
end

-- concurrency. a: lifetime of a slot in us. A sorted set of slots by the instant at which they end. A member, 'id:number:life', says
-- how long that slot lives, for another one may have been given by other numbers of the limit.
local slots = {}
local SLOT_WAIT_US = 1000000
-- The most slots that one call may take, renew or free, of all its limits together. Each is a member, and all clients of the store wait
-- while they are written.
local MAX_SLOTS = 10000
-- What the call has met so far: limits of slots, and slots that end too late.
local slot_limits, late_slots = 0, 0

local function slot_of(id, number, life) return id .. ':' .. number .. format(':%.0f', life) end

-- Slots that an older library gave do not say it.
local function life_of(s, slot) return to_number(string.match(slot, ':%d+:(%d+)$')) or s.life end

-- The clock was set back if the last slot ends later than it can. Then each that does ends as if it had begun now. One call sees to
-- MAX_SLOTS, and later ones to the others, for anybody who may write a counter can fill it with such slots.
local function find_late(s, now)
  local late, last = {}, now
  local most = MAX_SLOTS - late_slots
  if most <= 0 then
    s.last = now + s.life
    return
  end
  local found = call('ZREVRANGEBYSCORE', s.key, '+inf', after(now), 'WITHSCORES', 'LIMIT', 0, most)
  late_slots = late_slots + #found / 2
  for i = 1, #found, 2 do
    local ends, latest = to_number(found[i + 1]), now + life_of(s, found[i])
    if ends > latest then
      late[#late + 1] = found[i]
      ends = latest
    end
    last = max(last, ends)
  end
  s.late, s.last = late, last
end

function slots.read(s, spec, key, now)
  local quota, a = spec.cap, spec.a
  local held = call('ZCOUNT', key, after(now), '+inf')
  slot_limits = slot_limits + 1
  s.key, s.now, s.held, s.cap, s.life, s.cost, s.behind, s.room = key, now, held, min(quota, MAX_SLOTS), a, 0, false, quota - held
  s.late, s.last = false, now
  if held > 0 then
    local last = call('ZREVRANGE', key, 0, 0, 'WITHSCORES')
    s.last = to_number(last[2])
    if s.last - now > life_of(s, last[1]) then
      s.behind = true
      find_late(s, now)
    end
  end
  return true
end

-- A slot may be free at any moment, and nobody knows which: it is renewed while its owner lives.
function slots.wait() return SLOT_WAIT_US end

function slots.reset(s)
  if s.held == 0 then return 0 end
  return s.last - s.now
end

function slots.mark() return 0 end

function slots.add(s, cost, id)
  s.held = s.held + cost
  s.room = s.room - cost
  s.cost, s.id = cost, id
  s.last = max(s.last, s.now + s.life)
end

function slots.amend(s, delta, _, id)
  if delta > 0 then -- slots that were given elsewhere, whether they fit or not
    slots.add(s, delta, id)
  else
    s.cost, s.id = delta, id
  end
  return true
end

function slots.write(key, s, slack)
  if s.late then
    for _, slot in ipairs(s.late) do call('ZADD', key, format('%.0f', s.now + life_of(s, slot)), slot) end
  end
  if s.cost < 0 then
    for number = 1, -s.cost do call('ZREM', key, slot_of(s.id, number, s.life)) end
    return
  end
  call('ZREMRANGEBYSCORE', key, '-inf', format('%.0f', s.now))
  local ends = format('%.0f', s.now + s.life)
  for number = 1, s.cost do call('ZADD', key, ends, slot_of(s.id, number, s.life)) end
  call('PEXPIRE', key, ceil((s.last - s.now) / 1000) + slack)
end

local ALGORITHMS = {f = fixed, d = durable, r = rolling, k = durable_rolling, s = sliding, l = log, b = bucket, c = slots}
local MAX_NUMBER = 9007199254740991 -- 2^53 - 1

-- Refuse what a call says. Every argument of a call is looked at before its first write.
local function refuse(name, rule, value) error({err = format('ERR sg3: %s: %s, got %s', name, rule, tostring(value))}) end

-- Return whether the boundaries of a calendar go up, which are the first `count` of b.
local function ascend(b, count)
  for i = 2, count do
    if b[i] <= b[i - 1] then return false end
  end
  return true
end

-- Return whether an algorithm can count with a and b. A length of 0 would never limit anything.
local function fits(algorithm, cap, a, b)
  if algorithm == bucket then return #b == 1 and b[1] > 0 end
  if algorithm == fixed or algorithm == durable then return #b == 0 or a == 0 and ascend(b, #b) end
  if algorithm == rolling or algorithm == durable_rolling then
    return a <= cap and #b == 6 and ascend(b, 4) and max(b[4], b[5], b[6]) <= MAX_NUMBER
  end
  return algorithm and a > 0 and #b == 0
end

-- Limits as calls name them, 'letter|capacity|a|b|flags', by that text: it is read once and kept, for the same limits come with
-- every call. b is a list of numbers, cut by commas; flags: 's' for a shadow. So many are kept at most, of so many characters:
local MAX_SPECS = 10000
local MAX_SPEC_LENGTH = 256
local specs, kept_specs = {}, 0

local function spec_of(text)
  local letter, cap, a, list, flags = string.match(text, '^(%l)|(%d+)|(%d+)|([%d,]*)|(s?)$')
  local algorithm, b = ALGORITHMS[letter], {}
  cap, a = to_number(cap or ''), to_number(a or '')
  for number in string.gmatch(list or '', '%d+') do b[#b + 1] = to_number(number) end
  if #text > MAX_SPEC_LENGTH or not (letter and fits(algorithm, cap, a, b)) or max(cap, a, b[1] or 0) > MAX_NUMBER then
    refuse('limit', "must be 'letter|capacity|a|b|flags'", text)
  end
  local is_fixed, is_durable = algorithm == fixed or algorithm == durable, algorithm == durable
  local spec = {algorithm = algorithm, cap = cap, a = a, b = b, shadow = flags == 's', fixed = is_fixed, durable = is_durable}
  if kept_specs >= MAX_SPECS then specs, kept_specs = {}, 0 end
  specs[text], kept_specs = spec, kept_specs + 1
  return spec
end
