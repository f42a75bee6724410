-- The names carry the version of the interface, so that old and new enforcers run side by side.
redis.register_function('sg1_decide', decide)
redis.register_function('sg1_lease', lease)
redis.register_function('sg1_settle', settle)
redis.register_function('sg1_renew', renew)
redis.register_function('sg1_reset', reset)
redis.register_function('sg1_publish', publish)
redis.register_function('sg1_heartbeat', heartbeat)
