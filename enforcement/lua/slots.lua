-- Prolong the slots of a holder that is alive, and the places in censuses of values that they are held for. A slot that has ended, as
-- the clock went ahead or the store lost it, is taken again if there is room.
-- KEYS[i]    counter of a concurrency limit; behind them the censuses of those that have one, in their order.
-- ARGV[1]    time; ARGV[2] id; then for each counter: slots, lifetime in us, capacity, name of its value in the census ('': it has
--            none), microseconds that it stands there.
-- Returns    how many slots are held; fewer than given means that others took the place of some.
local function renew(keys, args)
  local now, slack = instant(args[1])
  local count, renewed = (#args - 2) / 5, 0
  if count % 1 ~= 0 or count < 0 then refuse('arguments', '5 for each counter', #args) end
  local all = 0
  for at = 3, #args, 5 do
    local slots, life, cap, stands = to_number(args[at]), to_number(args[at + 1]), to_number(args[at + 2]), to_number(args[at + 4])
    if not slots or slots ~= slots then refuse('slots', 'must be a number', args[at]) end
    all = all + max(0, slots)
    if not (life and cap and stands) or not (life > 0) then refuse('slots', 'must have a life and a capacity', args[at + 1]) end
  end
  bound_slots(all)
  local census = count
  for i = 1, count do
    local at = 5 * i - 2
    local key, slots, life, value = keys[i], to_number(args[at]), to_number(args[at + 1]), args[at + 3]
    local free = to_number(args[at + 2]) - call('ZCOUNT', key, after(now), '+inf')
    for number = 1, slots do
      local member = slot_of(args[2], number, life)
      local ends = call('ZSCORE', key, member)
      local held = ends and to_number(ends) > now
      if held or free > 0 then
        call('ZADD', key, format('%.0f', now + life), member)
        renewed, free = renewed + 1, held and free or free - 1
      end
    end
    -- Never shorter: slots of a longer life may stand beside these.
    local lives_ms = format('%.0f', ceil(life / 1000) + slack)
    call('PEXPIRE', key, lives_ms, 'NX')
    call('PEXPIRE', key, lives_ms, 'GT')
    if value ~= '' then
      census = census + 1
      enter(keys[census], value, now, to_number(args[at + 4]), slack)
    end
  end
  return renewed
end
