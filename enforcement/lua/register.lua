-- The names carry the version of the interface, so that old and new enforcers run side by side.
redis.register_function('sg2_decide', decide)
redis.register_function('sg2_lease', lease)
redis.register_function('sg2_settle', settle)
redis.register_function('sg2_renew', renew)
redis.register_function('sg2_reset', reset)
redis.register_function('sg2_publish', publish)
redis.register_function('sg2_heartbeat', heartbeat)
