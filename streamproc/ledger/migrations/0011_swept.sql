-- Rows of objects that are deleted go a week later: without it, each look for those reads the rows of all objects.
CREATE INDEX objects_swept ON streamproc.objects (stream, swept_at) WHERE state = 'swept';
