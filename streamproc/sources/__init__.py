"""Where records come from. Only this package imports aiokafka."""
