/* From the bytes of record batches to columns, for the records that are plain enough to be judged here.
 *
 * Nothing here decides that a record is bad. What is not understood completely is left to the Python code, which
 * gives the same answers for everything, only later. No function reads outside of what it was given, whatever the
 * bytes are.
 */
#ifndef STREAMPROC_RECORDS_H
#define STREAMPROC_RECORDS_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Where the value of a record is, in bytes from the beginning of its payload; a length below zero: it has none. */
struct span {
    int32_t start, length;
};

/* walk.c: the spans of the values of `count` records of a Kafka record batch (format 2, decompressed).
 *
 * False when the bytes are not exactly so many records with successive offsets, or a header's name begins with `ours`
 * or is not ASCII. */
bool walk_records(const uint8_t *payload, size_t size, int32_t count, const char *ours, struct span *spans);

/* blocks.c: memory whose contents are whatever was there before; NULL when there is none. */
void *block_take(size_t size);
void block_give(void *block);

/* columns.c: columns being filled, and handed over by the Arrow C data interface. */

enum kind {
    TEXT,    /* a JSON string, as Arrow string views */
    INTEGER, /* int64 */
    NUMBER,  /* float64 */
    BOOLEAN, /* bitmap */
    SOURCE,  /* whatever stands there, as its source text; string views as well */
    OBJECT,  /* not a column: an object with members of its own */
};

/* One value of one record, found and not yet stored. `escapes`: the text has some, all of them two characters long. */
struct cell {
    bool found, escapes;
    int32_t length;
    union {
        const uint8_t *text;
        int64_t integer;
        double number;
        bool flag;
    } as;
};

/* Bytes of texts that are longer than a view holds, shared by the columns of a scan. */
struct texts {
    int64_t references; /* atomic */
    uint8_t *bytes;
    size_t used;
};

struct column {
    enum kind kind;
    int64_t rows, nulls;
    uint8_t *validity; /* bitmap, least significant bit first */
    uint8_t *values;   /* 16, 8 or 1/8 bytes a row */
    struct texts *texts;
    int64_t references; /* atomic */
};

struct texts *texts_new(size_t capacity);
void texts_drop(struct texts *texts);
struct column *column_new(enum kind kind, int64_t capacity, struct texts *texts);
void column_drop(struct column *column);
void column_append(struct column *column, const struct cell *cell);
PyObject *column_export(struct column *column); /* (schema capsule, array capsule) */

/* json.c: what the fields of a contract are and where they stand. */

struct node {
    char *key; /* UTF-8 */
    Py_ssize_t length;
    enum kind kind;
    int column; /* -1 for OBJECT */
    int number; /* among all nodes */
    int children;
    struct node *child;
};

struct plan {
    struct node root; /* an OBJECT without a key */
    int nodes, columns;
    struct node **leaf; /* by column */
};

/* Of one scan: `cells` by column, valid for the record in which its node was `seen` last. */
struct scan {
    const struct plan *plan;
    struct cell *cells;
    int64_t *seen; /* by node: number of the record */
    int64_t record;
};

/* Find the fields of one record. False when it is not plain; the cells are worth nothing then. */
bool scan_record(struct scan *scan, const uint8_t *bytes, size_t length);

#endif
