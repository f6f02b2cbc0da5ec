"""The whole pipeline in one process and one thread, on simulated time and servers, from one seed."""
