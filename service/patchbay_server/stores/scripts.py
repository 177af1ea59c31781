"""The Redis catalog's changes, each one Lua script; `redis.py` tells the keys and what they hold.

Every script reads and decides first and writes last: Redis does not undo what a failing script has written.
"""

from __future__ import annotations

_COMMON = """
local deltas, versions, deleted, merges, blobs = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local digests, tenants, tombstones, holds, condemned = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local uploads = KEYS[11]
local tenant, name = ARGV[1], ARGV[2]

local function text(number) return string.format('%d', number) end

local function load_entry()
  local found = redis.call('HGET', deltas, name)
  if found then return cjson.decode(found) end
  return {last = 0, current = 0, live = {}}
end

local function save_entry(entry) redis.call('HSET', deltas, name, cjson.encode(entry)) end

local function record(version) return redis.call('HGET', versions, name .. '@' .. version) end

-- live: true to enter the version below its digest, nil to take it out
local function index(digest, version, live)
  local found = redis.call('HGET', digests, digest)
  local users = found and cjson.decode(found) or {}
  users[tenant .. '/' .. name .. '@' .. version] = live
  if next(users) then
    redis.call('HSET', digests, digest, cjson.encode(users))
  else
    redis.call('HDEL', digests, digest)
  end
end
"""

# What a tenant has stored, added up: it is asked for by uploads alone, and a sum that is kept could be wrong.
_ROOM = """
local function is_kept(begun) return begun.expires_at > tonumber(redis.call('TIME')[1]) end

local function long(number) return string.format('%.0f', number) end

local function used()
  local bytes, count = 0, 0
  local entries = redis.call('HGETALL', deltas)
  for i = 1, #entries, 2 do
    for version in pairs(cjson.decode(entries[i + 1]).live) do
      count = count + 1
      bytes = bytes + cjson.decode(redis.call('HGET', versions, entries[i] .. '@' .. version)).size
    end
  end
  for _, blob in ipairs(redis.call('HVALS', blobs)) do bytes = bytes + cjson.decode(blob).size end
  for _, begun in ipairs(redis.call('HVALS', uploads)) do
    begun = cjson.decode(begun)
    if is_kept(begun) then bytes = bytes + begun.length end
  end
  return bytes, count
end

-- bytes of a blob that a version takes the place of
local function brought(digest)
  local found = redis.call('HGET', blobs, digest)
  return found and cjson.decode(found).size or 0
end

-- bytes of an upload that a blob takes the place of
local function promised(digest)
  local found = redis.call('HGET', uploads, digest)
  local begun = found and cjson.decode(found)
  return begun and is_kept(begun) and begun.length or 0
end

-- nil where there is room; else which limit, what is used of it, and the limit
local function refusal(size, more)
  local found = redis.call('HGET', tenants, tenant)
  local limits = found and cjson.decode(found) or {}
  local most_bytes, most_deltas = tonumber(limits.max_bytes), tonumber(limits.max_deltas)
  if not most_bytes and not most_deltas then return nil end
  local bytes, count = used()
  if most_bytes and bytes + size > most_bytes then return {'over bytes', long(bytes), long(most_bytes)} end
  if most_deltas and count + more > most_deltas then return {'over deltas', long(count), long(most_deltas)} end
  return nil
end
"""

# -> bytes, live versions
USAGE = (
    _COMMON
    + _ROOM
    + """
local bytes, count = used()
return {long(bytes), long(count)}
"""
)

# (the digest in the place of the name) record, size -> status, used, limit
ADD_BLOB = (
    _COMMON
    + _ROOM
    + """
if redis.call('HEXISTS', blobs, name) == 1 then
  redis.call('HDEL', uploads, name)
  return {'exists', '0', '0'}
end
local over = refusal(tonumber(ARGV[4]) - promised(name), 0)
if over then return over end
redis.call('HSET', blobs, name, ARGV[3])
redis.call('HDEL', uploads, name)
return {'created', '0', '0'}
"""
)

# digest, record, activate, size -> status, version, current, record; or which limit, what is used of it, the limit, ''
ADD_VERSION = (
    _COMMON
    + _ROOM
    + """
local digest, new_record, activate = ARGV[3], ARGV[4], ARGV[5] == '1'
if redis.call('HEXISTS', merges, name) == 1 then return {'merge', '0', '0', ''} end
local entry = load_entry()
for version, known in pairs(entry.live) do
  if known == digest then
    redis.call('HDEL', blobs, digest)
    return {'exists', version, text(entry.current), record(version)}
  end
end
local over = refusal(tonumber(ARGV[6]) - brought(digest), 1)
if over then return {over[1], over[2], over[3], ''} end
entry.last = entry.last + 1
local version = text(entry.last)
entry.live[version] = digest
if activate then entry.current = entry.last end
redis.call('HSET', versions, name .. '@' .. version, new_record)
save_entry(entry)
index(digest, version, true)
redis.call('HDEL', blobs, digest)
return {'created', version, text(entry.current), new_record}
"""
)

# (the digest in the place of the name) record, length, now, most -> status, length, ''; or which limit, what is used of
# it, the limit
BEGIN_UPLOAD = (
    _COMMON
    + _ROOM
    + """
local length, now, most = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local others, expired, known = 0, {}, nil
local entries = redis.call('HGETALL', uploads)
for i = 1, #entries, 2 do
  local begun = cjson.decode(entries[i + 1])
  if begun.expires_at <= now then table.insert(expired, entries[i])
  elseif entries[i] == name then known = begun.length
  else others = others + 1 end
end
if known and known ~= length then return {'other length', long(known), ''} end
if not known then
  if others >= most then return {'too many', '', ''} end
  local over = refusal(length, 0)
  if over then return over end
end
for _, digest in ipairs(expired) do redis.call('HDEL', uploads, digest) end
redis.call('HSET', uploads, name, ARGV[3])
return {'begun', long(length), ''}
"""
)

# version, expected or '' -> status, entry as it was, record
SET_CURRENT = (
    _COMMON
    + """
local version, expected = ARGV[3], ARGV[4]
local entry = load_entry()
local before = cjson.encode(entry)
if not entry.live[version] then return {'no version', before, ''} end
if expected ~= '' and expected ~= text(entry.current) then return {'moved on', before, ''} end
entry.current = tonumber(version)
save_entry(entry)
return {'ok', before, record(version)}
"""
)

# version or '' for all, time -> status, entry as it was
DELETE_DELTA = (
    _COMMON
    + """
local chosen, now = ARGV[3], ARGV[4]
local entry = load_entry()
local before = cjson.encode(entry)
local gone, kept = {}, {}
for version, digest in pairs(entry.live) do
  if chosen == '' or chosen == version then gone[version] = digest else kept[version] = digest end
end
if not next(gone) then return {'no version', before} end
if next(kept) and gone[text(entry.current)] then return {'still current', before} end
-- A server at its maxmemory refuses HSET as a script's first write, but not after an HDEL: deleting must always work.
redis.call('HDEL', deltas, name)
if gone[text(entry.current)] then entry.current = 0 end
entry.live = kept
save_entry(entry)
for version, digest in pairs(gone) do
  redis.call('HSET', deleted, name .. '@' .. version, now)
  redis.call('ZADD', tombstones, now, digest)
  index(digest, version, nil)
end
return {'ok', before}
"""
)

# record, replace -> status
SAVE_MERGE = (
    _COMMON
    + """
if next(load_entry().live) then return 'delta' end
if ARGV[4] ~= '1' and redis.call('HEXISTS', merges, name) == 1 then return 'merge' end
redis.call('HSET', merges, name, ARGV[3])
return 'ok'
"""
)

# (the digest in the place of the name) -> [name, version, current, record]
FIND_DIGEST = (
    _COMMON
    + """
local found = redis.call('HGET', digests, ARGV[2])
local rows = {}
for user in pairs(found and cjson.decode(found) or {}) do
  local owner, version
  owner, name, version = string.match(user, '^([^/]+)/(.+)@(%d+)$')
  if owner == tenant then table.insert(rows, {name, version, text(load_entry().current), record(version)}) end
end
return rows
"""
)

# seconds (the digest in the place of the name) -> status
HOLD = (
    _COMMON
    + """
local digest, now = ARGV[2], redis.call('TIME')
now = tonumber(now[1]) + tonumber(now[2]) / 1000000
if (tonumber(redis.call('ZSCORE', condemned, digest)) or 0) > now then return 'condemned' end
redis.call('ZREMRANGEBYSCORE', holds, '-inf', now)
redis.call('ZADD', holds, 'GT', now + tonumber(ARGV[3]), digest)
return 'ok'
"""
)

# since, seconds (the digest in the place of the name) -> status
CONDEMN = (
    _COMMON
    + """
local digest, now = ARGV[2], redis.call('TIME')
now = tonumber(now[1]) + tonumber(now[2]) / 1000000
local function score(key) return tonumber(redis.call('ZSCORE', key, digest)) or 0 end
if redis.call('HEXISTS', digests, digest) == 1 or score(tombstones) > tonumber(ARGV[3]) then return 'used' end
if score(holds) > now or score(condemned) > now then return 'held' end
redis.call('ZADD', condemned, now + tonumber(ARGV[4]), digest)
return 'ok'
"""
)
