-- Prepended to every script of the store: the names of the keys and the moves they share.
-- Works on Redis 6.2 and 7. Every script is atomic, and repeating it changes nothing more.
local queue, leases, owners, attempts = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local prompts, order, facts = KEYS[5], KEYS[6], KEYS[7]
local buffered, arrivals, payloads = KEYS[8], KEYS[9], KEYS[10]
local claimed, claim_steps = KEYS[11], KEYS[12]
local counters, settled = KEYS[13], KEYS[14]
local issued_stream, appended_stream, dead_letters, no_key = KEYS[15], KEYS[16], KEYS[17], KEYS[18]
local members, member_deadlines, values, clock, incarnations = KEYS[19], KEYS[20], KEYS[21], KEYS[22], KEYS[23]

-- The rest of KEYS: the incarnations that the caller acts for. Once one is no more, nothing that it asks is done.
for i = 24, #KEYS do
  if not redis.call('GET', KEYS[i]) then return redis.error_reply('FENCED ' .. KEYS[i]) end
end

-- Settled prompts are remembered this far back, so that issuing or sending one again is seen: this many times the most
-- that were ever open or claimed at once, and this many at least. See settle().
local SETTLED_PER_UNSETTLED = 4
local SETTLED_KEPT_AT_LEAST = 8192
local DEAD_LETTERS_KEPT = 10000
-- A notification stream only has to show that something happened after a given entry.
local NOTIFICATIONS_KEPT = 16

-- Fail here when Redis is at its maxmemory: once a script has written anything, Redis lets it go on and grow.
-- The command itself does nothing. Scripts that only move or free don't ask, so that a full store can empty.
local function need_room() redis.call('SETRANGE', no_key, 0, '') end

-- The opposite: from here on Redis lets this script write, however full it is. For moves that must not stop, or a full
-- store could never empty. The command itself does nothing.
local function never_mind_room() redis.call('DEL', no_key) end

-- The run's own clock, ms: leases and members are timed by it. It goes on with Redis' clock, but not back, and by no
-- more than this from one look to the next: so neither a clock that is set nor a Redis that was frozen or away ends a
-- lease. Whatever lives looks at every heartbeat.
local LONGEST_BETWEEN_LOOKS_MS = 10000

local function now_ms()
  local time = redis.call('TIME')
  local wall = time[1] * 1000 + math.floor(time[2] / 1000)
  local seen = redis.call('HMGET', clock, 'wall', 'run')
  local passed = wall - (seen[1] or wall)
  local now = (seen[2] or wall) + math.min(math.max(passed, 0), LONGEST_BETWEEN_LOOKS_MS)
  if not seen[1] or passed < 0 or passed >= 1000 then  -- not at every call: it is a write
    never_mind_room()
    redis.call('HSET', clock, 'wall', string.format('%.0f', wall), 'run', string.format('%.0f', now))
  end
  return now
end

local function notify(stream)
  redis.call('XADD', stream, 'MAXLEN', NOTIFICATIONS_KEPT, '*', 'n', 1)
end

local function last_id(stream)
  local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)
  return newest[1] and newest[1][1] or '0-0'
end

local function bury(reason, detail, source, size, payload)
  redis.call('XADD', dead_letters, 'MAXLEN', DEAD_LETTERS_KEPT, '*',
    'reason', reason, 'detail', detail, 'source', source, 'size', size, 'payload', payload)
end

local function is_leased(id) return redis.call('ZSCORE', leases, id) end

local function is_settled(id) return redis.call('ZSCORE', settled, id) end

local function end_lease(id)
  redis.call('ZREM', leases, id)
  redis.call('HDEL', owners, id)
end

-- leased -> queued, at its old place: the front.
local function requeue(id)
  end_lease(id)
  redis.call('ZADD', queue, redis.call('HGET', order, id), id)
end

-- One command for many arguments, in as few calls as Lua's stack allows: a call costs more than what it does.
local function call_many(command, key, arguments)
  for first = 1, #arguments, 4000 do
    redis.call(command, key, unpack(arguments, first, math.min(first + 3999, #arguments)))
  end
end

-- Adds these to a sorted set, numbered on from what the counter `sequence` counted.
local function add_in_order(set, sequence, ids)
  local number = redis.call('HINCRBY', counters, sequence, #ids) - #ids
  local numbered = {}
  for i, id in ipairs(ids) do
    numbered[2 * i - 1], numbered[2 * i] = number + i, id
  end
  call_many('ZADD', set, numbered)
end

-- any state -> `counter` (trained, rejected, expired or evaluated): nothing of these prompts, each named once, is kept but the id.
-- And that of the newest only. Who repeats himself does so soon: a sender within its window after a lost ack, a learner
-- with the one issue its crash cut short; between the two a commit may settle all that is claimed, and a rejection
-- or two what is open. Hence a multiple of these and no fixed number: it holds for a batch of any size, memory stops
-- growing within minutes and is always a fraction of what the unsettled take. A sender silent for longer is told
-- `unknown` instead of `duplicate`: refused, with a dead letter. Neither is accepted: for that its prompt must be queued
-- or leased.
local function settle(ids, counter)
  if #ids == 0 then return end
  local unsettled = 0  -- only settling makes them fewer: looking before it misses no maximum
  for _, key in ipairs({queue, leases, buffered, claimed}) do
    unsettled = unsettled + redis.call('ZCARD', key)
    call_many('ZREM', key, ids)
  end
  for _, key in ipairs({owners, attempts, prompts, order, facts, arrivals, payloads, claim_steps}) do
    call_many('HDEL', key, ids)
  end
  redis.call('HINCRBY', counters, counter, #ids)
  add_in_order(settled, 'settle_sequence', ids)
  local most = tonumber(redis.call('HGET', counters, 'most_unsettled') or 0)
  if unsettled > most then
    most = unsettled
    redis.call('HSET', counters, 'most_unsettled', most)
  end
  local kept = math.max(SETTLED_KEPT_AT_LEAST, SETTLED_PER_UNSETTLED * most)
  redis.call('ZREMRANGEBYRANK', settled, 0, -kept - 1)
end

-- Leases past their deadline: leased -> queued, or rejected when that happened `most` times.
local function expire_leases(most)
  local requeued = {}
  never_mind_room()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now_ms())) do
    local owner = redis.call('HGET', owners, id) or ''
    local times = redis.call('HINCRBY', attempts, id, 1)
    if times >= most then
      local prompt = redis.call('HGET', prompts, id) or ''
      bury('poison prompt', id .. ': its lease expired ' .. times .. ' times', owner, #prompt, string.sub(prompt, 1, 4096))
      settle({id}, 'rejected')
      notify(appended_stream)
    else
      requeue(id)
      requeued[#requeued + 1] = id
    end
  end
  if #requeued > 0 then notify(issued_stream) end
  return requeued
end

