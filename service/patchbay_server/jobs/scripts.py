"""The Redis queue's questions and changes, each one Lua script; `redis.py` tells the keys and what they hold.

JSON passes through as text: Lua would round its numbers to 14 digits. What time it is says the server, so that workers
on hosts whose clocks differ agree on which lease has run out; only tests give a time of their own.
"""

from __future__ import annotations

_COMMON = """
local root, now = KEYS[1], tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function key(...) return table.concat({root, ...}, ':') end
local function exact(number) return string.format('%.17g', number) end
local function get(id, field) return redis.call('HGET', key('job', id), field) end
local function set(id, ...) redis.call('HSET', key('job', id), 'updated_at', exact(now), ...) end
local function clear(id, ...) redis.call('HDEL', key('job', id), ...) end
local function row(id) return redis.call('HGETALL', key('job', id)) end
local function rows(ids)
  local found = {}
  for _, id in ipairs(ids) do table.insert(found, row(id)) end
  return found
end
local function has_expired(id) return (tonumber(get(id, 'lease_until')) or 0) <= now end

local function tell(id, kind, data) redis.call('RPUSH', key('events', id), kind .. ' ' .. data) end

local function tell_state(id)
  local cancelling = get(id, 'cancelling') == '1' and 'true' or 'false'
  tell(id, 'state', '{"state": "' .. get(id, 'state') .. '", "attempt": ' .. get(id, 'attempt')
    .. ', "cancelling": ' .. cancelling .. ', "result": ' .. (get(id, 'result') or 'null')
    .. ', "error": ' .. (get(id, 'error') or 'null') .. '}')
end

-- into the set of another state
local function move(id, state, score)
  redis.call('ZREM', key(get(id, 'state')), id)
  redis.call('ZADD', key(state), score, id)
  set(id, 'state', state)
end

local function end_job(id, state, result, failure)
  redis.call('SREM', key('open', get(id, 'tenant')), id)
  clear(id, 'owner', 'lease_until', 'result', 'error')
  move(id, state, exact(now))
  -- A new generation, so that a worker which does not know yet is refused by its lease, too.
  redis.call('HINCRBY', key('job', id), 'generation', 1)
  set(id, 'cancelling', '0')
  if result and result ~= '' then set(id, 'result', result) end
  if failure and failure ~= '' then set(id, 'error', failure) end
  tell_state(id)
end

local function requeue(id)
  if get(id, 'cancelling') == '1' then return end_job(id, 'cancelled') end
  move(id, 'queued', get(id, 'number'))
  clear(id, 'owner')
  tell_state(id)
end
"""

# tenant, id, kind, spec, key or '', hash of the body, most open jobs or '', forget those that were over by so many
# seconds ago, and so many of them -> status, row
SUBMIT = (
    _COMMON
    + """
local tenant, id, kind, spec, name, hash = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local most, kept, forgotten = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])

local function forget(id)
  local owner, made_by = get(id, 'tenant'), get(id, 'key')
  redis.call('ZREM', key('of', owner), id)
  redis.call('ZREM', key(get(id, 'state')), id)
  if made_by then redis.call('HDEL', key('keys', owner), made_by) end
  redis.call('UNLINK', key('job', id), key('events', id), key('evaluations', id))
end

local known = name ~= '' and redis.call('HGET', key('keys', tenant), name)
if known then return {'known', row(known)} end
if most and redis.call('SCARD', key('open', tenant)) >= most then return {'too many', {}} end
for _, state in ipairs({'done', 'failed', 'cancelled'}) do
  local old = redis.call('ZRANGEBYSCORE', key(state), '-inf', exact(now - kept), 'LIMIT', 0, forgotten)
  for _, each in ipairs(old) do forget(each) end
end
local number = redis.call('INCR', key('number'))
set(id, 'id', id, 'number', number, 'tenant', tenant, 'kind', kind, 'spec', spec, 'state', 'queued', 'attempt', 0,
  'losses', 0, 'generation', 0, 'cancelling', 0, 'created_at', exact(now))
redis.call('ZADD', key('queued'), number, id)
redis.call('ZADD', key('of', tenant), number, id)
redis.call('SADD', key('open', tenant), id)
if name ~= '' then
  set(id, 'key', name, 'body_hash', hash)
  redis.call('HSET', key('keys', tenant), name, id)
end
tell_state(id)
return {'created', row(id)}
"""
)

# tenant, key -> row, empty where there is none
FIND_KEY = (
    _COMMON
    + """
local id = redis.call('HGET', key('keys', ARGV[2]), ARGV[3])
return id and row(id) or {}
"""
)

# tenant, most -> rows, the newest first
LIST = _COMMON + "return rows(redis.call('ZREVRANGE', key('of', ARGV[2]), 0, tonumber(ARGV[3]) - 1))"

# -> rows, the oldest first
RUNNING = _COMMON + "return rows(redis.call('ZRANGE', key('running'), 0, -1))"

# states -> how many jobs are in each
COUNT = (
    _COMMON
    + """
local found = {}
for number = 2, #ARGV do found[number - 1] = redis.call('ZCARD', key(ARGV[number])) end
return found
"""
)

# -> the specs of all jobs that are not over
SPECS = (
    _COMMON
    + """
local found = {}
for _, state in ipairs({'queued', 'running'}) do
  for _, id in ipairs(redis.call('ZRANGE', key(state), 0, -1)) do table.insert(found, get(id, 'spec')) end
end
return found
"""
)

# tenant, id -> row, empty where there is none
CANCEL = (
    _COMMON
    + """
local tenant, id = ARGV[2], ARGV[3]
if get(id, 'tenant') ~= tenant then return {} end
local state = get(id, 'state')
if state == 'queued' or (state == 'running' and has_expired(id)) then
  end_job(id, 'cancelled')
elseif state == 'running' and get(id, 'cancelling') == '0' then
  set(id, 'cancelling', '1')
  tell_state(id)
end
return row(id)
"""
)

# owner, seconds, most losses, the error of a job that has lost as many -> row, empty where there is none
CLAIM = (
    _COMMON
    + """
local owner, seconds, most, poisoned = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]

local function first(state)
  local start, ids = 0, nil
  repeat
    ids = redis.call('ZRANGE', key(state), start, start + 99)
    for _, id in ipairs(ids) do
      if has_expired(id) then return id end
    end
    start = start + 100
  until #ids == 0
end

local function oldest()
  local waiting, lost = first('queued'), first('running')
  if not waiting or not lost then return waiting or lost end
  return tonumber(get(waiting, 'number')) < tonumber(get(lost, 'number')) and waiting or lost
end

local function take(id, losses)
  move(id, 'running', get(id, 'number'))
  clear(id, 'error')
  set(id, 'owner', owner, 'lease_until', exact(now + seconds), 'losses', losses)
  for _, field in ipairs({'attempt', 'generation'}) do redis.call('HINCRBY', key('job', id), field, 1) end
  tell_state(id)
end

local id = oldest()
while id do
  local losses = tonumber(get(id, 'losses')) + (get(id, 'state') == 'running' and 1 or 0)
  if get(id, 'cancelling') == '1' then
    end_job(id, 'cancelled')
  elseif losses >= most then
    end_job(id, 'failed', nil, poisoned)
  else
    take(id, losses)
    return row(id)
  end
  id = oldest()
end
return {}
"""
)

# owner
EXPIRE = (
    _COMMON
    + """
for _, id in ipairs(redis.call('ZRANGE', key('running'), 0, -1)) do
  if get(id, 'owner') == ARGV[2] then redis.call('HSET', key('job', id), 'lease_until', '0') end
end
"""
)

# owner
RELEASE_OWNER = (
    _COMMON
    + """
for _, id in ipairs(redis.call('ZRANGE', key('running'), 0, -1)) do
  if get(id, 'owner') == ARGV[2] then
    clear(id, 'lease_until')
    requeue(id)
  end
end
"""
)

# What follows is a worker's: id, owner, generation, ... -> 'lost', or what comes of it
_OWNED = (
    _COMMON
    + """
local id = ARGV[2]
if get(id, 'state') ~= 'running' or get(id, 'owner') ~= ARGV[3] or get(id, 'generation') ~= ARGV[4] then
  return 'lost'
end
"""
)

# ..., seconds -> 1 where it is to be cancelled
EXTEND = (
    _OWNED
    + """
set(id, 'lease_until', exact(now + tonumber(ARGV[5])))
return tonumber(get(id, 'cancelling'))
"""
)

# ..., progress
REPORT = (
    _OWNED
    + """
set(id, 'progress', ARGV[5])
tell(id, 'progress', ARGV[5])
"""
)

# ..., number, evaluation -> how many were known
ADD_EVALUATION = (
    _OWNED
    + """
local known = redis.call('LLEN', key('evaluations', id))
if known == tonumber(ARGV[5]) then
  set(id, 'losses', 0)
  redis.call('RPUSH', key('evaluations', id), ARGV[6])
end
return known
"""
)

# ..., state, result or '', error or ''
FINISH = (
    _OWNED
    + """
set(id, 'losses', 0)
end_job(id, ARGV[5], ARGV[6], ARGV[7])
"""
)

# ...
RELEASE = (
    _OWNED
    + """
clear(id, 'lease_until')
requeue(id)
"""
)

# ..., error, seconds, most losses
RETRY = (
    _OWNED
    + """
local failure, seconds, most = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local losses = redis.call('HINCRBY', key('job', id), 'losses', 1)
if losses >= most and get(id, 'cancelling') == '0' then return end_job(id, 'failed', nil, failure) end
set(id, 'error', failure, 'lease_until', exact(now + seconds))
requeue(id)
"""
)
