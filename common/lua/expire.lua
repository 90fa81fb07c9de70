-- queued or leased -> expired. ARGV: prompt ids... Returns those that were.
local expired = {}
for i = 1, #ARGV do
  local id = ARGV[i]
  if is_leased(id) or redis.call('ZSCORE', queue, id) then
    settle(id, 'expired')
    expired[#expired + 1] = id
  end
end
return expired
