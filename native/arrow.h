/* The Arrow C data interface, https://arrow.apache.org/docs/format/CDataInterface.html, and frames that come by it. */
#ifndef STREAMPROC_ARROW_H
#define STREAMPROC_ARROW_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

/* Bytes of a string view, and how many of a string it holds itself. */
#define VIEW 16
#define INLINE 12

struct ArrowSchema {
    const char *format, *name, *metadata;
    int64_t flags, n_children;
    struct ArrowSchema **children, *dictionary;
    void (*release)(struct ArrowSchema *);
    void *private_data;
};

struct ArrowArray {
    int64_t length, null_count, offset, n_buffers, n_children;
    const void **buffers;
    struct ArrowArray **children, *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};

struct ArrowArrayStream {
    int (*get_schema)(struct ArrowArrayStream *, struct ArrowSchema *);
    int (*get_next)(struct ArrowArrayStream *, struct ArrowArray *);
    const char *(*get_last_error)(struct ArrowArrayStream *);
    void (*release)(struct ArrowArrayStream *);
    void *private_data;
};

/* frames.c: a polars frame, read where it lies, chunk by chunk. */

enum layout {
    WIDE,  /* integers and floats of `width` bytes */
    BITS,  /* booleans */
    VIEWS, /* texts and bytes */
    LISTS, /* of int64 */
};

/* A column of the chunk at hand. `offset` counts rows. */
struct lent {
    enum layout layout;
    int width;
    bool is_signed;
    int64_t offset;
    const uint8_t *validity; /* NULL: no value is null */
    const uint8_t *values;   /* of LISTS the offsets of their beginnings, int64 */
    const void **texts;      /* the buffers that views point into */
    struct lent *items;      /* of LISTS */
};

struct frame {
    PyObject *capsule;
    struct ArrowArrayStream *stream;
    struct ArrowSchema schema;
    struct ArrowArray chunk;
    int columns;
    int64_t rows; /* of the chunk at hand */
    struct lent *column;
};

/* False with an exception set: not a frame, or a column of a kind that is none of the above. */
bool frame_open(struct frame *frame, PyObject *given);
/* The next chunk: 1, none: 0, -1 with an exception set. */
int frame_next(struct frame *frame);
void frame_close(struct frame *frame);

static inline bool lent_is_null(const struct lent *column, int64_t row)
{
    int64_t at = column->offset + row;
    return column->validity != NULL && !(column->validity[at / 8] >> (at % 8) & 1);
}

/* Where the bytes of a text are, and how many. */
const uint8_t *lent_text(const struct lent *column, int64_t row, uint32_t *length);

#endif
