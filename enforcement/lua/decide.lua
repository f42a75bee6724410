-- Deciding and settling. Every function takes the time as its first argument: microseconds since the epoch, or '' to read the
-- store's clock. A given time is a test's frozen clock; its counters live a day longer, so that no real expiry empties them.
-- Arguments that are not what a function expects are an error, and nothing is written.

local FROZEN_SLACK_MS = 86400000

local function instant(text)
  if not call then bind() end
  if text ~= '' then return to_number(text), FROZEN_SLACK_MS end
  local time = call('TIME')
  return time[1] * 1000000 + time[2], 0
end

-- What a call knows of its limits, a list for each column. They outlive the call, which fills them anew: to make and to grow
-- a handful of tables a limit takes as long as to read its counter.
local limits, states, costs, waits, deltas, charged = {}, {}, {}, {}, {}, {}
local NONE = {}

-- Read all counters of a call into the lists: those of keys[skip + 1 ..], whose specs stand in args[at], args[at + step] ...
-- values: what they hold, if the caller has read it.
-- Returns how many there are; or nil and what keeps them from being read: OUTSIDE, a calendar's boundaries do not hold the store's
-- present, or LOST, the store lost durable counters and has not got them back.
local OUTSIDE, LOST = -1, -3
-- What a call remembers of its limits is kept, so nobody may name any number of them.
local MAX_LIMITS = 1000

local function read_all(keys, args, at, step, now, skip, values)
  local count = (#args - at + 1) / step
  if count % 1 ~= 0 or count < 1 and (count < 0 or #keys > skip) then refuse('arguments', step .. ' for each limit', #args) end
  if count > MAX_LIMITS then refuse('limits', 'must be at most ' .. MAX_LIMITS .. ' in one call', count) end
  slot_limits, late_slots = 0, 0
  -- One call for all. Keys in which it sees nothing are asked for by themselves.
  values = values or count > 1 and call('MGET', spread(keys)) or NONE
  for i = 1, count do
    local text, state, key = args[at], states[i], i + skip
    local limit = specs[text] or spec_of(text)
    if not state then
      state = {}
      states[i] = state
    end
    local value = values[key]
    if count > 1 then value = value or nil end -- of MGET, which does not tell a missing key from one of another type
    local known = limit.algorithm.read(state, limit, keys[key], now, value)
    if not known then return nil, known == nil and LOST or OUTSIDE end
    limits[i] = limit
    at = at + step
  end
  return count
end

local function wait_for(algorithm, state, cost)
  if cost == 0 then return 0 end
  if not cost or cost < 0 or cost % 1 ~= 0 then refuse('cost', 'must be an integer from 0', cost) end
  if cost > state.cap then return -1 end
  if cost <= state.room then return 0 end
  return algorithm.wait(state, cost)
end

-- Refuse, with the rule, a call that takes or frees more slots than one call may.
local function bound_slots(count)
  if count > MAX_SLOTS then refuse('slots', 'must be at most ' .. MAX_SLOTS .. ' in one call', count) end
end

-- Deny limits of slots, of `count` limits, from that on with which a request would take more slots than one call may: no wait helps.
-- Returns 0 if one of them is enforced, else 1.
local function deny_slots(count)
  local taken, passed = 0, 1
  for i = 1, count do
    if limits[i].algorithm == slots and waits[i] == 0 then
      if taken + costs[i] > MAX_SLOTS then
        waits[i] = -1
        if not limits[i].shadow then passed = 0 end
      else
        taken = taken + costs[i]
      end
    end
  end
  return passed
end

-- Return how long until more than `remaining` fits; 0: it is full, -2: never.
local function more_of(algorithm, state, remaining)
  if state.cap == 0 then return -2 end
  if remaining >= state.cap then return 0 end
  return algorithm.wait(state, remaining > 0 and remaining + 1 or 1)
end

-- Return a list of so many numbers for a reply. Each call fills it anew: a table that grows is copied each time. Longer ones are not
-- kept, for an account may call with any number of limits, and nothing else bounds the memory of functions.
local LONGEST_KEPT = 1000
local replies = {}

local function new_reply(size)
  local reply = replies[size]
  if not reply then
    reply = {}
    if size <= LONGEST_KEPT then replies[size] = reply end
  end
  return reply
end

-- Return a list of numbers as one text of 64-bit integers, big-endian: the store answers with one text sooner than with a list, and
-- a client reads it sooner.
local shapes = {}

local function packed(numbers)
  local count = #numbers
  local shape = shapes[count]
  if not shape then
    shape = '>' .. string.rep('i8', count)
    if count <= LONGEST_KEPT then shapes[count] = shape end
  end
  return pack(shape, spread(numbers))
end

-- Most requests are charged to fixed windows that have begun and have room. Three numbers of each counter decide those, so the two
-- functions below do it sooner than `decide`, without states. What they write and return is the same; a test holds them to that.
-- The first one denies, too, which no other limit can change then.
-- Return the packed reply; or nil, as nothing was written and `decide` has to do it, and what the counters hold if they were read.
local held, lasts = {}, {}

local function charge_one(key, text, permits, now, slack)
  local limit, cost = specs[text], permits == '1' and 1 or to_number(permits)
  if not (limit and limit.fixed and cost and cost >= 1 and cost % 1 == 0) then return nil end
  local value = call('GET', key)
  held[1] = value
  if not value then return nil, held end
  local used, ends, last = unpack_doubles('>ddd', value)
  local sum, left = used + cost, ends - now
  local remaining = limit.cap - sum
  if not (used >= 0 and left > 0 and now >= last) or remaining < 0 and (limit.shadow or cost > limit.cap) then return nil, held end
  if remaining < 0 then return pack('>i8i8i8i8i8i8', 0, now, limit.cap - used, left, left, left) end
  call('SETRANGE', key, '0', pack('>ddd', sum, ends, now))
  if now % 1000000 < now - last then call('PEXPIRE', key, ceil(left / 1000) + slack, 'NX') end
  if limit.durable then call('SADD', dirty_beside(key), sub(key, -NAME_LENGTH)) end
  return pack('>i8i8i8i8i8i8', 1, now, remaining, left, 0, left)
end

local function charge_several(keys, args, count, now, slack)
  local values = call('MGET', spread(keys, 1, count))
  local reply, n = new_reply(2 + 4 * count), 2
  reply[1], reply[2] = 1, now
  for i = 1, count do
    local limit, value, permits = specs[args[2 + 2 * i]], values[i], args[3 + 2 * i]
    local cost = permits == '1' and 1 or to_number(permits)
    if not (value and limit and limit.fixed and cost and cost >= 1 and cost % 1 == 0) then return nil, values end
    local used, ends, last = unpack_doubles('>ddd', value)
    local sum, left = used + cost, ends - now
    local remaining = limit.cap - sum
    if not (used >= 0 and remaining >= 0 and left > 0 and now >= last) then return nil, values end
    limits[i], charged[i], lasts[i] = limit, pack('>ddd', sum, ends, now), last
    reply[n + 1], reply[n + 2], reply[n + 3], reply[n + 4] = remaining, left, 0, left
    n = n + 4
  end
  for i = 1, count do
    local key = keys[i]
    call('SETRANGE', key, '0', charged[i])
    if now % 1000000 < now - lasts[i] then call('PEXPIRE', key, ceil(reply[4 * i] / 1000) + slack, 'NX') end
    if limits[i].durable then call('SADD', dirty_beside(key), sub(key, -NAME_LENGTH)) end
  end
  return packed(reply)
end

-- Charge a request to every limit it falls under, or to none.
-- KEYS[i]    counter of limit i; all carry one hash tag. Behind them, if a limit is durable, the set of counters that changed.
-- ARGV[1]    time, as above.
-- ARGV[2]    '1' charges if all enforced limits admit; '0' only looks.
-- ARGV[3]    id of the reservation, which owns slots and asks for marks; '' for none.
-- ARGV[4..]  two for each limit: its spec (see algorithms.lua), cost >= 0.
-- now, slack, values: what the caller has read already.
-- Returns    as `packed` says {passed 1 or 0, time, then for each limit: remaining (may be negative), reset_us, wait_us (0: this limit admits, -1: cost
--            exceeds the capacity, -2: no wait helps), more_us until more remains (0: it is full, -2: never), and its mark if ARGV[3]
--            was given}, or {OUTSIDE or LOST, time}: nothing was read or written.
-- All reads come before the first write, so a denial changes nothing; but it does set a counter right whose clock was set back.
local function decide(keys, args, now, slack, values)
  if not now then now, slack = instant(args[1]) end
  local count, why = read_all(keys, args, 4, 2, now, 0, values)
  if not count then return {why, now} end
  local passed = 1
  for i = 1, count do
    local limit, cost = limits[i], to_number(args[3 + 2 * i])
    local wait = wait_for(limit.algorithm, states[i], cost)
    costs[i], waits[i] = cost, wait
    if wait ~= 0 and not limit.shadow then passed = 0 end
  end
  if slot_limits > 1 and passed == 1 then passed = deny_slots(count) end
  local n, charges, marks = 2, passed == 1 and args[2] == '1', args[3] ~= ''
  local reply = new_reply(2 + count * (marks and 5 or 4))
  reply[1], reply[2] = passed, now
  for i = 1, count do
    local algorithm, state = limits[i].algorithm, states[i]
    local cost = charges and waits[i] == 0 and costs[i] or 0
    if cost > 0 then
      algorithm.add(state, cost, args[3])
      algorithm.write(keys[i], state, slack)
    elseif state.behind and args[2] == '1' then
      algorithm.write(keys[i], state, slack)
    end
    local remaining = floor(state.room)
    reply[n + 1], reply[n + 2], reply[n + 3] = remaining, algorithm.reset(state), waits[i]
    reply[n + 4] = more_of(algorithm, state, remaining)
    n = n + 4
    if marks then
      n = n + 1
      reply[n] = algorithm.mark(state)
    end
  end
  return reply
end

-- The same, packed, and the usual way if there is one.
local function decide_packed(keys, args)
  local now, slack = instant(args[1])
  local reply, values
  if args[2] == '1' and args[3] == '' then
    local count = (#args - 3) / 2
    if count == 1 then
      reply, values = charge_one(keys[1], args[4], args[5], now, slack)
    elseif count > 1 and count % 1 == 0 and count <= MAX_LIMITS then
      reply, values = charge_several(keys, args, count, now, slack)
    end
  end
  return reply or packed(decide(keys, args, now, slack, values))
end

-- Correct earlier charges: settle, cancel, release slots, or record what was admitted while the store was away.
-- KEYS[1]    marker of the correction; with it a second correction of the same id changes nothing.
-- KEYS[i+1]  counter of limit i; behind them as in a decision.
-- ARGV[1]    time, as above.
-- ARGV[2]    milliseconds the marker lives; '' for a correction that may be repeated (slots).
-- ARGV[3]    id of the reservation.
-- ARGV[4..]  three for each limit: its spec, permits to add (negative: give back), the mark of the charge.
-- Returns    the number of counters changed; -1 if the id was settled before; -2 if a calendar's boundaries do not hold the time; LOST.
local function settle(keys, args)
  local now, slack = instant(args[1])
  local count, why = read_all(keys, args, 4, 3, now, 1)
  if not count then return why == LOST and LOST or -2 end
  local moved = 0
  for i = 1, count do
    local delta, mark = to_number(args[2 + 3 * i]), to_number(args[3 + 3 * i])
    if not delta or delta % 1 ~= 0 or delta < -MAX_NUMBER or delta > MAX_NUMBER then refuse('permits', 'must be an integer', args[2 + 3 * i]) end
    if not mark or mark % 1 ~= 0 then refuse('mark', 'must be an integer', args[3 + 3 * i]) end
    if limits[i].algorithm == slots then moved = moved + math.abs(delta) end
    deltas[i], charged[i] = delta, mark
  end
  bound_slots(moved)
  if args[2] ~= '' and not call('SET', keys[1], '1', 'NX', 'PX', args[2]) then return -1 end
  local changed = 0
  for i = 1, count do
    local algorithm, state, delta = limits[i].algorithm, states[i], deltas[i]
    if delta ~= 0 and algorithm.amend(state, delta, charged[i], args[3]) then
      algorithm.write(keys[i + 1], state, slack)
      changed = changed + 1
    end
  end
  return changed
end

-- Forget counters. KEYS[i] counters. Returns how many there were.
local function reset(keys)
  return redis.call('UNLINK', unpack(keys))
end
