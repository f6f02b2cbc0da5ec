/* The records of a Kafka record batch: https://kafka.apache.org/documentation/#record */

#include <string.h>

#include "records.h"

struct cursor {
    const uint8_t *at, *end;
};

/* A zigzag varint of at most `bytes` bytes. */
static bool varint(struct cursor *cursor, int bytes, int64_t *value)
{
    uint64_t read = 0;
    for (int n = 0; n < bytes && cursor->at < cursor->end; n++) {
        uint8_t byte = *cursor->at++;
        read |= (uint64_t)(byte & 0x7f) << (7 * n);
        if (!(byte & 0x80)) {
            *value = (int64_t)(read >> 1) ^ -(int64_t)(read & 1);
            return true;
        }
    }
    return false;
}

/* A length and so many bytes; below zero: none. */
static bool bytes(struct cursor *cursor, const uint8_t **start, int64_t *length)
{
    if (!varint(cursor, 5, length) || *length > cursor->end - cursor->at)
        return false;
    *start = cursor->at;
    if (*length > 0)
        cursor->at += *length;
    return true;
}

/* Whether the headers here are somebody else's: names in ASCII, none of which begins with `ours`. */
static bool skip_headers(struct cursor *record, int64_t count, const char *ours, size_t length)
{
    for (int64_t n = 0; n < count; n++) {
        const uint8_t *name, *value;
        int64_t size, ignored;
        if (!bytes(record, &name, &size) || size < 0 || !bytes(record, &value, &ignored))
            return false;
        if ((size_t)size >= length && memcmp(name, ours, length) == 0)
            return false;
        for (int64_t k = 0; k < size; k++)
            if (name[k] >= 0x80)
                return false;
    }
    return true;
}

bool walk_records(const uint8_t *payload, size_t size, int32_t count, const char *ours, struct span *spans)
{
    size_t length_of_ours = strlen(ours);
    if (size > INT32_MAX)
        return false;
    struct cursor batch = {payload, payload + size};
    for (int32_t n = 0; n < count; n++) {
        int64_t size_of_record, timestamp, offset, length, headers;
        const uint8_t *start;
        if (!varint(&batch, 5, &size_of_record) || size_of_record < 1 || size_of_record > batch.end - batch.at)
            return false;
        struct cursor record = {batch.at + 1, batch.at + size_of_record}; /* behind the attributes */
        if (!varint(&record, 10, &timestamp) || !varint(&record, 5, &offset) || offset != n)
            return false;
        if (!bytes(&record, &start, &length) /* the key */ || !bytes(&record, &start, &length))
            return false;
        if (!varint(&record, 5, &headers) || headers < 0 ||
            !skip_headers(&record, headers, ours, length_of_ours) || record.at != record.end)
            return false;
        spans[n].start = (int32_t)(start - payload);
        spans[n].length = length < 0 ? -1 : (int32_t)length;
        batch.at = record.end;
    }
    return batch.at == batch.end;
}
