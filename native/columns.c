/* Columns in the memory layout of Arrow: https://arrow.apache.org/docs/format/CDataInterface.html */

#include <stdlib.h>
#include <string.h>

#include "arrow.h"
#include "records.h"

struct texts *texts_new(size_t capacity)
{
    struct texts *texts = calloc(1, sizeof *texts);
    if (texts == NULL || (texts->bytes = block_take(capacity)) == NULL) {
        free(texts);
        return NULL;
    }
    texts->references = 1;
    return texts;
}

void texts_drop(struct texts *texts)
{
    if (texts != NULL && __atomic_sub_fetch(&texts->references, 1, __ATOMIC_ACQ_REL) == 0) {
        block_give(texts->bytes);
        free(texts);
    }
}

static size_t bytes_for(enum kind kind, int64_t rows)
{
    if (kind == BOOLEAN)
        return (size_t)(rows + 7) / 8;
    return (size_t)rows * (kind == TEXT || kind == SOURCE ? VIEW : 8);
}

struct column *column_new(enum kind kind, int64_t capacity, struct texts *texts)
{
    struct column *column = calloc(1, sizeof *column);
    if (column == NULL)
        return NULL;
    column->kind = kind;
    column->references = 1;
    column->validity = block_take((size_t)(capacity + 7) / 8);
    column->values = block_take(bytes_for(kind, capacity));
    column->texts = texts;
    __atomic_add_fetch(&texts->references, 1, __ATOMIC_RELAXED);
    if (column->validity == NULL || column->values == NULL) {
        column_drop(column);
        return NULL;
    }
    memset(column->validity, 0, (size_t)(capacity + 7) / 8);
    if (kind == BOOLEAN)
        memset(column->values, 0, bytes_for(kind, capacity));
    return column;
}

void column_drop(struct column *column)
{
    if (column != NULL && __atomic_sub_fetch(&column->references, 1, __ATOMIC_ACQ_REL) == 0) {
        block_give(column->validity);
        block_give(column->values);
        texts_drop(column->texts);
        free(column);
    }
}

static size_t copy_unescaped(uint8_t *to, const uint8_t *from, size_t length)
{
    static const char SPELLED[] = "bfnrt", MEANT[] = "\b\f\n\r\t";
    uint8_t *begin = to;
    for (const uint8_t *end = from + length; from < end; from++) {
        if (*from == '\\') {
            const char *which = strchr(SPELLED, *++from);
            *to++ = which == NULL ? *from : (uint8_t)MEANT[which - SPELLED];
        } else {
            *to++ = *from;
        }
    }
    return (size_t)(to - begin);
}

/* A view of at most twelve bytes holds them; of more, the first four and where all are. */
static void append_text(struct column *column, const struct cell *cell)
{
    uint8_t *view = column->values + column->rows * VIEW;
    struct texts *texts = column->texts;
    uint8_t *place = texts->bytes + texts->used;
    const uint8_t *text = cell->as.text;
    int32_t length = cell->length, buffer = 0, offset = (int32_t)texts->used;
    if (cell->escapes) {
        length = (int32_t)copy_unescaped(place, text, (size_t)length);
        text = place;
    }
    if (length <= INLINE) {
        memset(view, 0, VIEW);
        memcpy(view, &length, 4);
        memcpy(view + 4, text, (size_t)length);
        return;
    }
    memcpy(view, &length, 4);
    memcpy(view + 4, text, 4);
    memcpy(view + 8, &buffer, 4);
    memcpy(view + 12, &offset, 4);
    if (text != place)
        memcpy(place, text, (size_t)length);
    texts->used += (size_t)length;
}

/* A null's value is zero: a view has to be valid even there. */
void column_append(struct column *column, const struct cell *cell)
{
    int64_t row = column->rows;
    if (cell == NULL || !cell->found) {
        column->nulls++;
        if (column->kind != BOOLEAN) {
            size_t width = bytes_for(column->kind, 1);
            memset(column->values + (size_t)row * width, 0, width);
        }
    } else {
        column->validity[row / 8] |= (uint8_t)(1 << (row % 8));
        switch (column->kind) {
        case INTEGER:
            memcpy(column->values + row * 8, &cell->as.integer, 8);
            break;
        case NUMBER:
            memcpy(column->values + row * 8, &cell->as.number, 8);
            break;
        case BOOLEAN:
            column->values[row / 8] |= (uint8_t)(cell->as.flag << (row % 8));
            break;
        default:
            append_text(column, cell);
        }
    }
    column->rows++;
}

/* -- handing over: https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html ----------------- */

struct exported {
    struct column *column;
    const void *buffers[4];
    int64_t sizes[1]; /* of the data buffers, as views want it */
};

static void release_schema(struct ArrowSchema *schema)
{
    schema->release = NULL;
}

/* May be called by any thread, without the interpreter's lock: nothing here belongs to Python. */
static void release_array(struct ArrowArray *array)
{
    struct exported *exported = array->private_data;
    column_drop(exported->column);
    free(exported);
    array->release = NULL;
}

static void free_schema(PyObject *capsule)
{
    struct ArrowSchema *schema = PyCapsule_GetPointer(capsule, "arrow_schema");
    if (schema != NULL && schema->release != NULL)
        schema->release(schema);
    free(schema);
}

static void free_array(PyObject *capsule)
{
    struct ArrowArray *array = PyCapsule_GetPointer(capsule, "arrow_array");
    if (array != NULL && array->release != NULL)
        array->release(array);
    free(array);
}

static struct ArrowSchema *schema_of(enum kind kind)
{
    static const char *const FORMATS[] = {[TEXT] = "vu", [INTEGER] = "l", [NUMBER] = "g", [BOOLEAN] = "b", [SOURCE] = "vu"};
    struct ArrowSchema *schema = calloc(1, sizeof *schema);
    if (schema != NULL) {
        schema->format = FORMATS[kind];
        schema->name = "";
        schema->flags = 2; /* nullable */
        schema->release = release_schema;
    }
    return schema;
}

static struct ArrowArray *array_of(struct column *column)
{
    struct ArrowArray *array = calloc(1, sizeof *array);
    struct exported *exported = calloc(1, sizeof *exported);
    if (array == NULL || exported == NULL) {
        free(array);
        free(exported);
        return NULL;
    }
    bool viewed = column->kind == TEXT || column->kind == SOURCE;
    __atomic_add_fetch(&column->references, 1, __ATOMIC_RELAXED);
    exported->column = column;
    exported->sizes[0] = (int64_t)column->texts->used;
    exported->buffers[0] = column->nulls ? column->validity : NULL;
    exported->buffers[1] = column->values;
    exported->buffers[2] = column->texts->bytes;
    exported->buffers[3] = exported->sizes;
    array->length = column->rows;
    array->null_count = column->nulls;
    array->n_buffers = viewed ? 4 : 2;
    array->buffers = exported->buffers;
    array->release = release_array;
    array->private_data = exported;
    return array;
}

PyObject *column_export(struct column *column)
{
    struct ArrowSchema *schema = schema_of(column->kind);
    if (schema == NULL)
        return PyErr_NoMemory();
    PyObject *first = PyCapsule_New(schema, "arrow_schema", free_schema);
    if (first == NULL) {
        free(schema);
        return NULL;
    }
    struct ArrowArray *array = array_of(column);
    PyObject *second = array == NULL ? PyErr_NoMemory() : PyCapsule_New(array, "arrow_array", free_array);
    if (second == NULL) {
        if (array != NULL) {
            array->release(array);
            free(array);
        }
        Py_DECREF(first);
        return NULL;
    }
    PyObject *both = PyTuple_Pack(2, first, second);
    Py_DECREF(first);
    Py_DECREF(second);
    return both;
}
