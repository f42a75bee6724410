-- Counters that outlive the store. Beside the counters of a hash tag stands a set. It names, by the last part of their keys, the
-- counters that changed since their last checkpoint; and its member 'whole' says that this store has all that was checkpointed.
-- A store that restarted empty has no such member: no durable counter begins in it until the control plane has restored them.
--
-- Restoring takes several calls, between which the store may lose all again. So it begins with a mark in the set, and only a store
-- that still has the mark in the end is said to be whole.
--
-- A checkpoint stamps the counter it reads, and SQL keeps the stamp. A counter whose stamp is older than SQL's was lost meanwhile
-- and has begun anew: it is not the later state of that checkpoint, and gets it back instead of replacing it.

-- Read counters and stamp them.
-- KEYS[i]    counter, of one hash tag.
-- ARGV[1]    time, as in decide.lua.
-- Returns    for each counter {used, end in us (0: never), last in us, the stamp that it had, the one that it has now, and of one that
--            carries the number of its window, the number of the one before it, what that had, what was used of it, how long it is
--            kept after its end in us, and what its window has}, or {}: it is no more.
local function checkpoint(keys, args)
  local now, reply = instant(args[1]), {}
  for i, key in ipairs(keys) do
    local used, ends, last, stamped, number, before, had, spent, life, has = durable_state(key)
    if used then
      local stamp = max(now, stamped + 1)
      call('SETRANGE', key, 24, pack('>d', stamp))
      reply[i] = {used, ends, last, stamped, stamp, number, before, had, spent, life, has}
    else
      reply[i] = {}
    end
  end
  return reply
end

-- Strike counters out of the set that are still as they were when they were read.
-- KEYS[1]    the set; KEYS[i+1] counter i.
-- ARGV       three for each counter: used, end, last, as they were read; '' for one that was no more.
-- Returns    how many were struck out.
local function checkpointed(keys, args)
  if not call then bind() end
  local struck = 0
  for i = 2, #keys do
    local at, used, ends, last = 3 * i - 5, durable_state(keys[i])
    if not used or used == to_number(args[at]) and ends == to_number(args[at + 1]) and last == to_number(args[at + 2]) then
      struck = struck + call('SREM', keys[1], sub(keys[i], -NAME_LENGTH))
    end
  end
  return struck
end

-- Give counters back what they had, where they have less.
-- KEYS[i]    counter, of one hash tag.
-- ARGV[1]    time, as in decide.lua.
-- ARGV[2..]  four for each counter: used, end, last, stamp.
-- Returns    how many were written. One whose window is over, or that counts another window by now, stays as it is.
local function restore(keys, args)
  local now, slack = instant(args[1])
  local written = 0
  for i, key in ipairs(keys) do
    local at = 4 * i - 2
    local used, ends = to_number(args[at]), to_number(args[at + 1])
    local last, stamp = to_number(args[at + 2]), to_number(args[at + 3])
    local present, until_us, touched, stamped, number = durable_state(key)
    if present and until_us ~= 0 and max(now, touched) >= until_us then present = nil end
    if (ends == 0 or now < ends) and (present and until_us == ends or not present and used > 0) then
      if present then used, last, stamp = max(used, present), max(last, touched), max(stamp, stamped) end
      local packed = pack('>dddd', used, ends, last, stamp)
      if present and number then
        call('SETRANGE', key, 0, packed) -- what it carries stays
      else
        put(key, packed, ends == 0 and TEN_YEARS_MS * 1000 or ends - now, slack)
      end
      written = written + 1
    end
  end
  return written
end

-- Return the number of the last window before `own` that was charged, what it had and what was used of it, as two states know it.
-- The later window counts, for one state does not know what the other has seen. Of the same window the lower rest counts.
local function later_of(own, before, had, spent, known, given, gone)
  if known >= own or before < own and known < before then return before, had, spent end
  if before >= own or before < known then return known, given, gone end
  return before, min(had, given), max(spent, gone)
end

-- Give counters that carry back what they had. What they carry lasts longer than their window.
-- KEYS[i]    counter, of one hash tag.
-- ARGV[1]    time, as in decide.lua.
-- ARGV[2..]  ten for each counter: used, end, last, stamp, number, before, had, spent, life, has, as `checkpoint` returns them.
-- Returns    how many were written. One that is forgotten by now stays as it is. One that counts the same window, because it began anew or
--            the store was set back, has the greater usage of both and carries what the later of their earlier windows left. One
--            that counts a later window carries what this one left, if it knows no later one.
local function restore_carried(keys, args)
  local now, slack = instant(args[1])
  local written = 0
  for i, key in ipairs(keys) do
    local at, kept = 10 * i - 8, {}
    for n = 1, 10 do kept[n] = to_number(args[at + n - 1]) end
    local used, ends, last, stamp, number, before, had, spent, life, has = spread(kept)
    local present, until_us, touched, stamped, own, known, given, gone, own_life, own_has = durable_state(key)
    if present and until_us > ends then
      if own and own > number then
        before, had, spent = later_of(own, number, has, used, known, given, gone)
        used, ends, last, stamp, number, life, has = present, until_us, touched, max(stamp, stamped), own, own_life, own_has
      else
        number = nil
      end
    elseif until_us == ends then
      used, last, stamp = max(used, present), max(last, touched), max(stamp, stamped)
      if own then before, had, spent = later_of(number, before, had, spent, known, given, gone) end
    end
    if number and now < ends + life then
      put(key, pack('>dddddddddd', used, ends, last, stamp, number, before, had, spent, life, has), ends - now + life, slack)
      written = written + 1
    end
  end
  return written
end

-- Say that this store has all that was checkpointed of a hash tag, if it has the mark that was set before the first counter was restored.
-- KEYS[1]    the set.
-- ARGV[1]    the mark. It looks like the name of a counter that is no more, so that a checkpoint strikes out one that is left over.
-- Returns    1: it is whole, or was so before; 0: it lost the mark.
local function whole(keys, args)
  if redis.call('SREM', keys[1], args[1]) == 0 then return redis.call('SISMEMBER', keys[1], WHOLE) end
  redis.call('SADD', keys[1], WHOLE)
  return 1
end
