-- Keeping a census: which values of a limit's attributes have a counter of their own. Beyond its cap, values share an overflow counter.
-- A value stands in the census for as long as its counter may live, and is enrolled in the call that first charges it.

local FORGOTTEN_AT_ONCE = 100
local BEYOND_MS = 86400000

-- Tell whether a census has a place for a value; `joining` counts the new ones of this call.
local function has_place(census, value, cap, now, joining)
  if call('ZSCORE', census, value) then return true end
  local new = (joining[census] or 0) + 1
  if call('ZCARD', census) + new > cap then
    -- Some of those whose time is over: no request pays for a whole generation.
    local over = call('ZRANGEBYSCORE', census, '-inf', format('%.0f', now), 'LIMIT', 0, FORGOTTEN_AT_ONCE)
    if over[1] then call('ZREM', census, spread(over)) end
    if call('ZCARD', census) + new > cap then return false end
  end
  joining[census] = new
  return true
end

local function enter(census, value, now, life, slack)
  local lives_ms = ceil(life / 1000) + slack
  call('ZADD', census, format('%.0f', now + life), value)
  -- Never shorter: a limit that got a shorter window has counters of the longer one.
  call('PEXPIRE', census, lives_ms, 'NX')
  call('PEXPIRE', census, lives_ms, 'GT')
end

-- Count a value that found no place, about right and within a day. What was charged stands if that is refused.
local function note(beyond, value)
  redis.pcall('PFADD', beyond, value)
  redis.pcall('PEXPIRE', beyond, BEYOND_MS, 'NX')
end

-- Return the number of values, if the arguments name a counter, a cap and a life for each of them.
local function count_of_values(keys, args)
  local n = to_number(args[1] or '')
  if not n or n % 1 ~= 0 or n < 1 or #args < 5 * n + 2 or #keys < 4 * n then refuse('arguments', '5 for each value', #args) end
  for at = 2, 5 * n, 5 do
    local place, cap, life = to_number(args[at]), to_number(args[at + 2]), to_number(args[at + 3])
    if not place or place % 1 ~= 0 or place < 1 or place > #keys - 3 * n then refuse('place', 'must be that of a counter', args[at]) end
    if not (cap and life) or not (cap >= 0) or not (life >= 1 and life <= MAX_NUMBER) then
      refuse('value', 'must have a cap and a life', args[at + 1])
    end
  end
  return n
end

local function part(list, from)
  local rest = {}
  for i = from, #list do rest[i - from + 1] = list[i] end
  return rest
end

-- Go on with the count that 0.2 kept of a durable counter under another name, if there is one and this has not begun.
local function carry(earlier, key, now, slack)
  local used, ends, last, stamp = durable_state(earlier)
  if not used or ends ~= 0 and max(now, last) >= ends or durable_state(key) then return end
  put(key, pack('>dddd', used, ends, last, stamp), ends == 0 and TEN_YEARS_MS * 1000 or ends - now, slack)
  call('SADD', dirty_beside(key), sub(key, -NAME_LENGTH))
end

-- Find a counter for each of n values that may be new, and let `body` go on with them; enrol them if it charged.
-- KEYS       three for each value: census, the estimate of those beyond it, overflow counter; then the keys of `body`.
-- ARGV[1]    n.
-- ARGV[2..]  five for each value: place of its counter among the keys of `body`, its name in the census, cap, microseconds that it
--            stands there, the counter that 0.2 kept for it ('': none, for it is not durable); then the arguments of `body`, of
--            which the first is the time.
-- Returns    {reply of `body`, then for each value 1: it had no place, and was diverted; or 0}.
-- A decision is diverted to the overflow counter. A correction is left out, and its sender told: several of one call may have the
-- same overflow counter, and a call reads all counters before it writes one.
local function enrolling(body, charged, divert)
  return function(keys, args)
    if not call then bind() end
    local n = count_of_values(keys, args)
    local rest_keys, rest, joining, reply = part(keys, 3 * n + 1), part(args, 5 * n + 2), {}, {0}
    local now, slack = instant(rest[1])
    for i = 1, n do
      local at = 5 * i - 3
      local placed = has_place(keys[3 * i - 2], args[at + 1], to_number(args[at + 2]), now, joining)
      if not placed then
        divert(rest_keys, rest, to_number(args[at]), keys[3 * i])
      elseif args[at + 4] ~= '' then
        carry(args[at + 4], rest_keys[to_number(args[at])], now, slack)
      end
      reply[i + 1] = placed and 0 or 1
    end
    reply[1] = body(rest_keys, rest)
    if not charged(reply[1]) then return reply end
    for i = 1, n do
      local at = 5 * i - 3
      if reply[i + 1] == 0 then
        enter(keys[3 * i - 2], args[at + 1], now, to_number(args[at + 3]), slack)
      else
        note(keys[3 * i - 1], args[at + 1])
      end
    end
    return reply
  end
end

local enrol = enrolling(decide, function(reply) return reply[1] == 1 end, function(keys, _, at, overflow) keys[at] = overflow end)

local enrol_settle = enrolling(settle, function(reply) return reply >= 0 end, function(_, args, at) args[3 * at - 1] = '0' end)
