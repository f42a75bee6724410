-- Publish a state: documents, tokens and an entry in the change log, in one step that refuses an older revision.
-- KEYS[1]    documents (hash); KEYS[2] change log (stream); KEYS[2+i] document of token i, or the document of prices.
-- ARGV[1]    revision, greater than the store's.
-- ARGV[2]    time in microseconds, told to readers.
-- ARGV[3]    identity for a store that has none, or one of a lower epoch ('ID.EPOCH'; without a dot: epoch 0);
--            '': the store keeps its own, and takes nothing if it has none.
-- ARGV[4]    changes (JSON) for the log.
-- ARGV[5]    '1': the documents given are all there are; others are removed.
-- ARGV[6]    number of documents d; then d pairs of field and JSON ('' removes); then a pair for each token: JSON ('' removes),
--            instant in milliseconds at which it expires ('' never).
-- Returns    {1, revision}, or {0, the store's revision (0: it has none)}: nothing was written.
local LOG_LENGTH = 1000

-- As enforcers read it: at most six digits, the first of them no 0.
local function epoch_of(identity)
  return tonumber(string.match(identity, '^[^.]+%.([1-9]%d?%d?%d?%d?%d?)$') or '0')
end

-- Write the keys from first on. From args[at] on, each has a pair of text ('' removes) and end in milliseconds ('' none).
local function write_pairs(keys, args, first, at)
  for i = first, #keys do
    if args[at] == '' then
      redis.call('UNLINK', keys[i])
    elseif args[at + 1] == '' then
      redis.call('SET', keys[i], args[at])
    else
      redis.call('SET', keys[i], args[at], 'PXAT', args[at + 1])
    end
    at = at + 2
  end
end

local function publish(keys, args)
  local revision = tonumber(args[1])
  local present = tonumber(redis.call('HGET', keys[1], 'revision') or '0')
  if present >= revision then return {0, present} end
  local identity = redis.call('HGET', keys[1], 'store_id') or args[3]
  if identity == '' then return {0, present} end
  if epoch_of(args[3]) > epoch_of(identity) then identity = args[3] end
  local id = string.format('%.0f-0', revision)
  local logged = redis.pcall('XADD', keys[2], 'MAXLEN', '~', LOG_LENGTH, id, 'changes', args[4],
    'store_id', identity)
  if type(logged) == 'table' and logged.err then -- a log that outlived its documents
    redis.call('UNLINK', keys[2])
    redis.call('XADD', keys[2], id, 'changes', args[4], 'store_id', identity)
  end
  if args[5] == '1' then redis.call('UNLINK', keys[1]) end
  local at = 7
  for _ = 1, tonumber(args[6]) do
    if args[at + 1] == '' then
      redis.call('HDEL', keys[1], args[at])
    else
      redis.call('HSET', keys[1], args[at], args[at + 1])
    end
    at = at + 2
  end
  write_pairs(keys, args, 3, at)
  redis.call('HSET', keys[1], 'revision', args[1], 'published_at_us', args[2], 'store_id', identity)
  -- Beside the tokens too: one command reads a token and tells whether the store has any.
  redis.call('SET', (string.gsub(keys[1], 'documents$', 'token:revision')), args[1] .. ' ' .. identity)
  return {1, revision}
end

-- Write tokens of a state that publish_whole publishes later. All tokens in one call would keep the store from deciding.
-- KEYS[1]    documents (hash); KEYS[2] mark of the rebuild (string); KEYS[2+i] document of token i.
-- ARGV[1]    mark of this rebuild; ARGV[2] milliseconds for which the mark is kept; ARGV[3] '1': the rebuild begins.
-- ARGV[4]    revision and ARGV[5] identity of the store, as read before the tokens were read from SQL ('' none).
-- ARGV[6...] a pair for each token, as in publish.
-- Returns    1: written. 0: another state was published since, so the tokens may be older than those that are here.
--            -1: the mark is gone, and with it all that was written before. -2: another rebuild has its mark here.
local function write_tokens(keys, args)
  local mark = redis.call('GET', keys[2]) or ''
  if mark ~= args[1] and not (mark == '' and args[3] == '1') then return mark == '' and -1 or -2 end
  if (redis.call('HGET', keys[1], 'revision') or '') ~= args[4] then return 0 end
  if (redis.call('HGET', keys[1], 'store_id') or '') ~= args[5] then return 0 end
  redis.call('SET', keys[2], args[1], 'PX', args[2])
  write_pairs(keys, args, 3, 6)
  return 1
end

-- Publish a state whose tokens were written by write_tokens, as publish does.
-- KEYS[1]    mark of the rebuild; the others are those of publish.
-- ARGV[1]    mark of this rebuild; the others are those of publish.
-- Returns    as publish, or {-1, 0}: the mark is not here, because the store was emptied since. Nothing was written.
local function publish_whole(keys, args)
  local marked = table.remove(keys, 1)
  if redis.call('GET', marked) ~= table.remove(args, 1) then return {-1, 0} end
  local reply = publish(keys, args)
  if reply[1] == 1 then redis.call('UNLINK', marked) end
  return reply
end

-- Say that an instance lives.
-- KEYS[1]    its heartbeat; KEYS[2] all instances (sorted set, last seen in microseconds).
-- ARGV[1]    time, as in decide.lua; ARGV[2] id; ARGV[3] JSON; ARGV[4] milliseconds it is believed.
-- Returns    {time, instances alive}
-- Who falls silent without a goodbye is lost, and the control plane shows that for a day.
local FORGET_AFTER_US = 86400000000

local function heartbeat(keys, args)
  local now = instant(args[1])
  redis.call('SET', keys[1], args[3], 'PX', args[4])
  redis.call('ZADD', keys[2], string.format('%.0f', now), args[2])
  redis.call('ZREMRANGEBYSCORE', keys[2], '-inf', string.format('%.0f', now - FORGET_AFTER_US))
  local alive = string.format('(%.0f', now - tonumber(args[4]) * 1000)
  return {now, redis.call('ZCOUNT', keys[2], alive, '+inf')}
end
