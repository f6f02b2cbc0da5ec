/* Rows as PostgreSQL's COPY takes them in its binary format:
 * https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS. All numbers big-endian. */

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "arrow.h"
#include "rows.h"

#define INT8_OID 20     /* bigint in pg_type */
#define NONE UINT32_MAX /* the length of a null */

struct out {
    uint8_t *bytes;
    size_t used, capacity;
};

/* Room for `more` bytes, and for what `put` writes behind them. */
static bool room(struct out *out, size_t more)
{
    more += 8;
    if (out->capacity - out->used >= more)
        return true;
    size_t capacity = out->capacity * 2 + more;
    uint8_t *grown = realloc(out->bytes, capacity);
    if (grown == NULL)
        return false;
    out->bytes = grown;
    out->capacity = capacity;
    return true;
}

/* The lower `width` bytes of `value`. There is room. Always writes eight, which is one instruction. */
static void put(struct out *out, uint64_t value, int width)
{
    uint8_t bytes[8];
    value <<= 64 - 8 * width;
    for (int n = 0; n < 8; n++)
        bytes[n] = (uint8_t)(value >> (56 - 8 * n));
    memcpy(out->bytes + out->used, bytes, 8);
    out->used += (size_t)width;
}

/* As 64 bits, of which the lower `width` bytes are what PostgreSQL's type of that width wants; floats are their bits. */
static uint64_t number(const struct lent *column, int64_t row)
{
    const uint8_t *place = column->values + (column->offset + row) * column->width;
    uint8_t tiny;
    uint16_t small;
    uint32_t medium;
    uint64_t large;
    switch (column->width) {
    case 1:
        tiny = *place;
        return column->is_signed ? (uint64_t)(int64_t)(int8_t)tiny : tiny;
    case 2:
        memcpy(&small, place, 2);
        return column->is_signed ? (uint64_t)(int64_t)(int16_t)small : small;
    case 4:
        memcpy(&medium, place, 4);
        return medium;
    default:
        memcpy(&large, place, 8);
        return large;
    }
}

/* PostgreSQL has no unsigned integers and none of one byte: the next wider type has room for all of them. */
static int width_of(const struct lent *column)
{
    if (column->width == 1)
        return 2;
    return column->is_signed ? column->width : column->width * 2;
}

static bool put_list(struct out *out, const struct lent *column, int64_t row)
{
    int64_t begin, end;
    const uint8_t *place = column->values + (column->offset + row) * 8;
    memcpy(&begin, place, 8);
    memcpy(&end, place + 8, 8);
    uint64_t count = (uint64_t)(end - begin), size = 12 + (count > 0 ? 8 : 0);
    bool nulls = false;
    if (count > INT_MAX / 12 || !room(out, 24 + count * 12))
        return false;
    for (int64_t item = begin; item < end; item++) {
        nulls = nulls || lent_is_null(column->items, item);
        size += lent_is_null(column->items, item) ? 4 : 12;
    }
    put(out, size, 4);
    put(out, count > 0, 4); /* dimensions */
    put(out, nulls, 4);
    put(out, INT8_OID, 4);
    if (count > 0) {
        put(out, count, 4);
        put(out, 1, 4); /* its first index */
    }
    for (int64_t item = begin; item < end; item++) {
        bool null = lent_is_null(column->items, item);
        put(out, null ? NONE : 8, 4);
        if (!null)
            put(out, number(column->items, item), 8);
    }
    return true;
}

static bool put_value(struct out *out, const struct lent *column, int64_t row)
{
    uint32_t length;
    const uint8_t *text;
    int64_t at = column->offset + row;
    if (!room(out, 12))
        return false;
    if (lent_is_null(column, row)) {
        put(out, NONE, 4);
        return true;
    }
    switch (column->layout) {
    case WIDE:
        put(out, (uint64_t)width_of(column), 4);
        put(out, number(column, row), width_of(column));
        return true;
    case BITS:
        put(out, 1, 4);
        put(out, column->values[at / 8] >> (at % 8) & 1, 1);
        return true;
    case VIEWS:
        text = lent_text(column, row, &length);
        if (length > INT_MAX || !room(out, 4 + (size_t)length))
            return false;
        put(out, length, 4);
        memcpy(out->bytes + out->used, text, length);
        out->used += length;
        return true;
    default:
        return put_list(out, column, row);
    }
}

static bool put_chunk(struct out *out, const struct frame *frame)
{
    for (int64_t row = 0; row < frame->rows; row++) {
        if (!room(out, 2))
            return false;
        put(out, (uint64_t)frame->columns, 2);
        for (int n = 0; n < frame->columns; n++)
            if (!put_value(out, &frame->column[n], row))
                return false;
    }
    return true;
}

PyObject *rows_of(PyObject *Py_UNUSED(module), PyObject *given)
{
    struct frame frame;
    struct out out = {NULL, 0, 0};
    PyObject *rows = NULL;
    int more = frame_open(&frame, given) ? 1 : -1;
    for (int n = 0; more == 1 && n < frame.columns; n++) {
        const struct lent *column = &frame.column[n];
        if (column->layout == WIDE && width_of(column) > 8) {
            PyErr_SetString(PyExc_TypeError, "PostgreSQL has no unsigned integers of 64 bits");
            more = -1;
        }
    }
    while (more == 1 && (more = frame_next(&frame)) == 1) {
        bool fits;
        Py_BEGIN_ALLOW_THREADS
        fits = put_chunk(&out, &frame);
        Py_END_ALLOW_THREADS
        if (!fits) {
            PyErr_NoMemory();
            more = -1;
        }
    }
    if (more == 0)
        rows = PyBytes_FromStringAndSize((const char *)out.bytes, (Py_ssize_t)out.used);
    free(out.bytes);
    frame_close(&frame);
    return rows;
}
