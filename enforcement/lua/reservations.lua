-- Reservations that any process can settle. A record of each, with what was charged, lies beside the counters until it is settled. It
-- is open until the time in the index that its process prolongs, and lost after that, with its charge.

local TOO_MANY = -4 -- instead of a decision: the index has no room
local IS_LOST = -5 -- instead of a settlement
local TOKEN_HAS_TOO_MANY = -6 -- instead of a decision: the token's own index has no room
local KEPT_MS = 604800000 -- a reservation can be settled for 7 days
local DROPPED_AT_ONCE = 100
local USUAL_SHARE = 50 -- percent

-- Return whether an index has room for one more id. Lost ones make room, the oldest first: their records can still be settled.
local function has_room(index, most, now)
  if call('ZCARD', index) < most then return true end
  local lost = call('ZRANGEBYSCORE', index, '-inf', format('%.0f', now), 'LIMIT', 0, DROPPED_AT_ONCE)
  if lost[1] then call('ZREM', index, spread(lost)) end
  return call('ZCARD', index) < most
end

-- Return the key of the index of a token's own reservations, and the token: '' for requests of a project without one. Nothing for limits
-- in code, which have no project. Every record says so at its beginning.
local function own_index(index, said)
  local project, token = string.match(said, '^{"v":1,"project":"([^"]*)","token":"([^"]*)"')
  if project and project ~= '' then return index .. ':' .. token, token end
end

-- Note how many reservations of a token are not settled, beside those of the other tokens.
local function note_own(index, own, token)
  local count = call('ZCARD', own)
  if count == 0 then
    call('ZREM', index .. '-of-tokens', token)
  else
    call('ZADD', index .. '-of-tokens', count, token)
  end
end

-- Return whether a token may have one more. Its own index does not know of those that were prolonged, nor of those that another library
-- has settled, so some of the first are looked at again.
local function has_room_of_its_own(index, own, most, now)
  if call('ZCARD', own) < most then return true end
  local first = call('ZRANGEBYSCORE', own, '-inf', format('%.0f', now), 'LIMIT', 0, DROPPED_AT_ONCE)
  for _, id in ipairs(first) do
    local ends = call('ZSCORE', index, id)
    if ends and to_number(ends) > now then call('ZADD', own, ends, id) else call('ZREM', own, id) end
  end
  return call('ZCARD', own) < most
end

-- Return what a settlement needs of a decision's reply, as text: the time, the mark of each limit ('-': it was not charged), and for
-- each new value whether its overflow counter was charged.
local function charges_of(decided, overflowed)
  local marks, n = {}, (#decided - 2) / 5
  for i = 1, n do
    marks[i] = decided[5 * i] == 0 and format('%.0f', decided[5 * i + 2]) or '-'
  end
  return format('%.0f', decided[2]) .. '|' .. table.concat(marks, ',') .. '|' .. table.concat(overflowed, ',')
end

-- Charge a request as `decide` or `enrol` does, and keep a record of it if it passed.
-- KEYS[1]    the index: ids by the instant at which they are lost.
-- KEYS[2]    the record. Then the keys of the decision.
-- ARGV[1]    id of the reservation, as in the decision.
-- ARGV[2]    microseconds until it is lost, unless it is prolonged.
-- ARGV[3]    how many may be open or lost.
-- ARGV[4]    what the record says besides, a text. It names the token, and perhaps with "token_share" the part of ARGV[3] that one token
--            may have, in percent.
-- ARGV[5]    '1' for `enrol`, '' for `decide`. Then the arguments of the decision.
-- Returns    what the decision returns, or {TOO_MANY, time} or {TOKEN_HAS_TOO_MANY, time} in its place.
local function reserve(keys, args)
  if not call then bind() end
  local index, record, life, most, registers = keys[1], keys[2], to_number(args[2]), to_number(args[3]), args[5] == '1'
  if not life or not (life > 0 and life <= KEPT_MS * 1000) then refuse('life', 'must be at most 7 days', args[2]) end
  if not most or not (most >= 0) then refuse('most', 'must be a number from 0', args[3]) end
  local rest_keys, rest = part(keys, 3), part(args, 6)
  local values = registers and count_of_values(rest_keys, rest) or 0
  local now, slack = instant(registers and rest[5 * values + 2] or rest[1])
  local own, token = own_index(index, args[4])
  local own_most = own and floor(most * (to_number(string.match(args[4], '"token_share":(%d+)') or USUAL_SHARE)) / 100)
  local why = own and not has_room_of_its_own(index, own, own_most, now) and TOKEN_HAS_TOO_MANY
  if not why and not has_room(index, most, now) then why = TOO_MANY end
  if why then
    local reply = {{why, now}}
    for i = 1, values do reply[i + 1] = 0 end
    return registers and reply or reply[1]
  end
  local reply = registers and enrol(rest_keys, rest) or decide(rest_keys, rest)
  local decided = registers and reply[1] or reply
  if decided[1] ~= 1 then return reply end
  call('SET', record, charges_of(decided, registers and part(reply, 2) or NONE) .. '\n' .. args[4], 'PX', KEPT_MS + slack)
  call('ZADD', index, format('%.0f', now + life), args[1])
  call('PEXPIRE', index, KEPT_MS + slack)
  if own then
    call('ZADD', own, format('%.0f', now + life), args[1])
    call('PEXPIRE', own, KEPT_MS + slack)
    note_own(index, own, token)
    call('PEXPIRE', index .. '-of-tokens', KEPT_MS + slack)
  end
  return reply
end

-- Correct the charges of a reservation as `settle` does, and forget it.
-- KEYS[1..2] index and record, as above. Then the keys of the correction.
-- ARGV[1]    id of the reservation. Then the arguments of the correction, without a life of the marker: the record is the marker.
-- Returns    what `settle` returns; -1 also if there is no record.
local function conclude(keys, args)
  if not call then bind() end
  local text = call('GET', keys[2])
  if not text then return -1 end
  local changed = settle(part(keys, 3), part(args, 2))
  if changed >= 0 then
    call('UNLINK', keys[2])
    call('ZREM', keys[1], args[1])
    local own, token = own_index(keys[1], string.match(text, '\n(.*)') or '')
    if own and call('ZREM', own, args[1]) == 1 then note_own(keys[1], own, token) end
  end
  return changed
end

-- Conclude a reservation only if it is open, for a correction that is not its provider's last word. One that is lost keeps its charge.
-- KEYS       as above.
-- ARGV[1]    id of the reservation.
-- ARGV[2]    the instant at which it must be open, microseconds; '' for now. Then the arguments of the correction, as above.
-- Returns    what `conclude` returns; IS_LOST if there is a record and it was lost by then: nothing was written.
local function conclude_open(keys, args)
  if not call then bind() end
  local at = args[2] == '' and instant(args[3]) or to_number(args[2])
  if not at or at % 1 ~= 0 then refuse('at', 'must be an instant', args[2]) end
  local ends = call('ZSCORE', keys[1], args[1]) -- a lost one that made room for others has none
  if call('GET', keys[2]) and not (ends and to_number(ends) > at) then return IS_LOST end
  table.remove(args, 2)
  return conclude(keys, args)
end

-- Prolong open reservations. KEYS[1] the index. ARGV[1] time; then for each its id and the microseconds until it is lost. One that is
-- lost stays so: an operator may have read it as lost, and be about to settle it.
-- Returns how many were open.
local function prolong(keys, args)
  local now, prolonged = instant(args[1]), 0
  for at = 2, #args, 2 do
    local life = to_number(args[at + 1])
    if not life or not (life > 0 and life <= KEPT_MS * 1000) then refuse('life', 'must be at most 7 days', args[at + 1]) end
  end
  for at = 2, #args, 2 do
    local ends = call('ZSCORE', keys[1], args[at])
    if ends and to_number(ends) > now then
      call('ZADD', keys[1], format('%.0f', now + to_number(args[at + 1])), args[at])
      prolonged = prolonged + 1
    end
  end
  return prolonged
end

-- Return a record, or nothing. KEYS[1] the record.
local function recorded(keys) return redis.call('GET', keys[1]) end
