-- queued or leased -> expired. ARGV: prompt ids... Returns those that were.
local expired, seen = {}, {}
for _, id in ipairs(ARGV) do
  if not seen[id] and (is_leased(id) or redis.call('ZSCORE', queue, id)) then
    seen[id] = true
    expired[#expired + 1] = id
  end
end
settle(expired, 'expired')
return expired
