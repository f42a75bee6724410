-- Deciding and settling. Every function takes the time as its first argument: microseconds since the epoch, or '' to read the
-- store's clock. A given time is a test's frozen clock; its counters live a day longer, so that no real expiry empties them.

local FIELDS = 6
local FROZEN_SLACK_MS = 86400000

local function instant(text)
  if not call then bind() end
  if text ~= '' then return tonumber(text), FROZEN_SLACK_MS end
  local time = call('TIME')
  return time[1] * 1000000 + time[2], 0
end

-- Read all counters of a call. Returns a list of {algorithm, state, key, amount, last argument}, or nil if a calendar's
-- boundaries do not hold the store's present.
local function read_all(keys, args, at, now, skip)
  local rows = {}
  for i = 1 + skip, #keys do
    local algorithm = ALGORITHMS[args[at]]
    local state = algorithm.read(keys[i], now, tonumber(args[at + 2]), tonumber(args[at + 3]), args[at + 4])
    if not state then return nil end
    rows[i - skip] = {algorithm, state, keys[i], tonumber(args[at + 1]), args[at + 5]}
    at = at + FIELDS
  end
  return rows
end

local function wait_for(algorithm, state, cost)
  if cost == 0 then return 0 end
  if cost > state.cap then return -1 end
  if cost <= algorithm.room(state) then return 0 end
  return algorithm.wait(state, cost)
end

-- Charge a request to every limit it falls under, or to none.
-- KEYS[i]    counter of limit i; all carry one hash tag.
-- ARGV[1]    time, as above.
-- ARGV[2]    '1' charges if all enforced limits admit; '0' only looks.
-- ARGV[3]    id of the reservation, which owns slots and asks for marks; '' for none.
-- ARGV[4..]  six for each limit: algorithm (f s l b c), cost >= 0, capacity, a, b (see algorithms.lua), 's' for a shadow or ''.
-- Returns    {passed 1 or 0, time, then for each limit: remaining (may be negative), reset_us, wait_us (0: this limit admits, -1: cost
--            exceeds the capacity, -2: no wait helps), more_us until more remains (0: it is full, -2: never), and its mark if ARGV[3]
--            was given}, or {-1, time}: a calendar's boundaries do not hold the time; nothing was read or written.
-- All reads come before the first write, so a denial changes nothing.
local function decide(keys, args)
  local now, slack = instant(args[1])
  local rows = read_all(keys, args, 4, now, 0)
  if not rows then return {-1, now} end
  local passed = 1
  for i = 1, #rows do
    local row = rows[i]
    local wait = wait_for(row[1], row[2], row[4])
    row[6] = wait
    if wait ~= 0 and row[5] ~= 's' then passed = 0 end
  end
  local reply, n, charges, marks = {passed, now}, 2, passed == 1 and args[2] == '1', args[3] ~= ''
  for i = 1, #rows do
    local row = rows[i]
    local algorithm, state = row[1], row[2]
    if charges and row[6] == 0 and row[4] > 0 then
      algorithm.add(state, row[4], args[3])
      algorithm.write(row[3], state, slack)
    end
    local remaining = floor(algorithm.room(state))
    reply[n + 1] = remaining
    reply[n + 2] = algorithm.reset(state)
    reply[n + 3] = row[6]
    local full = remaining >= state.cap or state.cap == 0
    reply[n + 4] = full and 0 or algorithm.wait(state, max(remaining, 0) + 1)
    n = n + 4
    if marks then
      n = n + 1
      reply[n] = algorithm.mark(state)
    end
  end
  return reply
end

-- Correct earlier charges: settle, cancel, release slots, or record what was admitted while the store was away.
-- KEYS[1]    marker of the correction; with it a second correction of the same id changes nothing.
-- KEYS[i+1]  counter of limit i.
-- ARGV[1]    time, as above.
-- ARGV[2]    milliseconds the marker lives; '' for a correction that may be repeated (slots).
-- ARGV[3]    id of the reservation.
-- ARGV[4..]  six for each limit: algorithm, permits to add (negative: give back), capacity, a, b, the mark of the charge.
-- Returns    the number of counters changed; -1 if the id was settled before; -2 if a calendar's boundaries do not hold the time.
local function settle(keys, args)
  local now, slack = instant(args[1])
  local rows = read_all(keys, args, 4, now, 1)
  if not rows then return -2 end
  if args[2] ~= '' and not call('SET', keys[1], '1', 'NX', 'PX', args[2]) then return -1 end
  local changed = 0
  for _, row in ipairs(rows) do
    if row[4] ~= 0 and row[1].amend(row[2], row[4], tonumber(row[5]), args[3]) then
      row[1].write(row[3], row[2], slack)
      changed = changed + 1
    end
  end
  return changed
end

-- Prolong slots that are still held.
-- KEYS[i]    counter of a concurrency limit.
-- ARGV[1]    time; ARGV[2] id; then for each counter: slots, lifetime in us.
-- Returns    how many slots were still held; fewer than given means that some were lost.
local function renew(keys, args)
  local now, slack = instant(args[1])
  local renewed = 0
  for i, key in ipairs(keys) do
    local count, life = tonumber(args[1 + 2 * i]), tonumber(args[2 + 2 * i])
    for number = 1, count do
      local member = args[2] .. ':' .. number
      local ends = call('ZSCORE', key, member)
      if ends and tonumber(ends) > now then
        call('ZADD', key, format('%.0f', now + life), member)
        renewed = renewed + 1
      end
    end
    call('PEXPIRE', key, format('%.0f', ceil(life / 1000) + slack))
  end
  return renewed
end

-- Forget counters. KEYS[i] counters. Returns how many there were.
local function reset(keys)
  return redis.call('UNLINK', unpack(keys))
end
