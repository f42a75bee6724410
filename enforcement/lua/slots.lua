-- Prolong slots that are still held, and the places in censuses of values that they are held for.
-- KEYS[i]    counter of a concurrency limit; behind them the censuses of those that have one, in their order.
-- ARGV[1]    time; ARGV[2] id; then for each counter: slots, lifetime in us, name of its value in the census ('': it has none),
--            microseconds that it stands there.
-- Returns    how many slots were still held; fewer than given means that some were lost.
local function renew(keys, args)
  local now, slack = instant(args[1])
  local count, renewed = (#args - 2) / 4, 0
  local census = count
  for i = 1, count do
    local key, slots, life, value = keys[i], to_number(args[4 * i - 1]), to_number(args[4 * i]), args[4 * i + 1]
    for number = 1, slots do
      local member = slot_of(args[2], number, life)
      local ends = call('ZSCORE', key, member)
      if ends and to_number(ends) > now then
        call('ZADD', key, format('%.0f', now + life), member)
        renewed = renewed + 1
      end
    end
    -- Never shorter: slots of a longer life may stand beside these.
    call('PEXPIRE', key, format('%.0f', ceil(life / 1000) + slack), 'GT')
    if value ~= '' then
      census = census + 1
      enter(keys[census], value, now, to_number(args[4 * i + 2]), slack)
    end
  end
  return renewed
end
