-- Take permits ahead for one process, from every limit of a plan or from none.
-- KEYS[i]    counter of limit i; all carry one hash tag. Behind them as in a decision.
-- ARGV[1]    time, as in decide.lua.
-- ARGV[2]    permits wanted, at least 1.
-- ARGV[3]    the part of what is left that one process may take: 1/ARGV[3] of it, but at least one permit.
-- ARGV[4..]  the spec of each limit.
-- Returns    as `packed` says {permits taken, time, then for each limit: remaining, reset_us, wait_us (0), more_us, mark}, or {OUTSIDE or
--            LOST, time}. 0 permits: some limit has none left; nothing was written.
local function lease(keys, args)
  local now, slack = instant(args[1])
  local count, why = read_all(keys, args, 4, 1, now, 0)
  if not count then return {why, now} end
  local taken, share = to_number(args[2]), to_number(args[3])
  if not taken or taken < 1 or taken % 1 ~= 0 then refuse('permits', 'must be an integer from 1', args[2]) end
  if not share or not (share >= 1) then refuse('share', 'must be a number from 1', args[3]) end
  if slot_limits > 0 then refuse('limit', 'must not count slots', args[4]) end
  for i = 1, count do
    local room = floor(states[i].room)
    taken = min(taken, room, max(1, floor(room / share)))
  end
  taken = max(0, taken)
  local reply, n = new_reply(2 + count * 5), 2
  reply[1], reply[2] = taken, now
  for i = 1, count do
    local algorithm, state = limits[i].algorithm, states[i]
    if taken > 0 then
      algorithm.add(state, taken, '')
      algorithm.write(keys[i], state, slack)
    end
    local remaining = floor(state.room)
    reply[n + 1], reply[n + 2], reply[n + 3] = remaining, algorithm.reset(state), 0
    reply[n + 4] = more_of(algorithm, state, remaining)
    reply[n + 5] = algorithm.mark(state)
    n = n + 5
  end
  return reply
end
