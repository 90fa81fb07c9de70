-- ARGV: most expiries. Returns the ids that went back to the queue.
return expire_leases(tonumber(ARGV[1]))
