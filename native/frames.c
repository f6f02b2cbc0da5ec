/* Frames of polars, read where they lie. Nothing is copied, and nothing is kept beyond the call that was given one. */

#include <stdlib.h>
#include <string.h>

#include "arrow.h"

/* Of a column of this Arrow format; false for one that nobody here reads. */
static bool know(const struct ArrowSchema *schema, struct lent *column)
{
    static const char NARROW[] = "cCsSiIlL", WIDTHS[] = {1, 1, 2, 2, 4, 4, 8, 8};
    const char *format = schema->format, *found;
    memset(column, 0, sizeof *column);
    column->is_signed = true;
    if (strcmp(format, "vu") == 0 || strcmp(format, "vz") == 0) {
        column->layout = VIEWS;
    } else if (strcmp(format, "b") == 0) {
        column->layout = BITS;
    } else if (strcmp(format, "+L") == 0) {
        column->layout = LISTS;
        column->items = calloc(1, sizeof *column->items);
        return column->items != NULL && know(schema->children[0], column->items) && column->items->width == 8;
    } else if (strncmp(format, "tsu:", 4) == 0 || strcmp(format, "g") == 0) {
        column->width = 8;
    } else if (strcmp(format, "tdD") == 0 || strcmp(format, "f") == 0) {
        column->width = 4;
    } else if (format[0] != 0 && format[1] == 0 && (found = strchr(NARROW, format[0])) != NULL) {
        column->width = WIDTHS[found - NARROW];
        column->is_signed = (found - NARROW) % 2 == 0;
    } else {
        return false;
    }
    return true;
}

static void lend(const struct ArrowArray *array, int64_t offset, struct lent *column)
{
    column->offset = array->offset + offset;
    column->validity = array->null_count == 0 ? NULL : array->buffers[0];
    column->values = array->buffers[1];
    if (column->layout == VIEWS)
        column->texts = array->buffers + 2;
    if (column->layout == LISTS)
        lend(array->children[0], 0, column->items);
}

bool frame_open(struct frame *frame, PyObject *given)
{
    memset(frame, 0, sizeof *frame);
    PyObject *method = PyObject_GetAttrString(given, "__arrow_c_stream__");
    frame->capsule = method == NULL ? NULL : PyObject_CallNoArgs(method);
    Py_XDECREF(method);
    if (frame->capsule == NULL ||
        (frame->stream = PyCapsule_GetPointer(frame->capsule, "arrow_array_stream")) == NULL)
        return false;
    if (frame->stream->get_schema(frame->stream, &frame->schema) != 0 ||
        strcmp(frame->schema.format, "+s") != 0)
        return PyErr_SetString(PyExc_TypeError, "not a frame"), false;
    int count = (int)frame->schema.n_children;
    frame->column = calloc((size_t)count + 1, sizeof *frame->column);
    if (frame->column == NULL)
        return PyErr_NoMemory(), false;
    for (; frame->columns < count; frame->columns++) {
        const struct ArrowSchema *schema = frame->schema.children[frame->columns];
        if (!know(schema, &frame->column[frame->columns])) {
            frame->columns++; /* what it has is let go with the others */
            PyErr_Format(PyExc_TypeError, "column %s has the format %s", schema->name, schema->format);
            return false;
        }
    }
    return true;
}

int frame_next(struct frame *frame)
{
    if (frame->chunk.release != NULL)
        frame->chunk.release(&frame->chunk);
    memset(&frame->chunk, 0, sizeof frame->chunk);
    if (frame->stream->get_next(frame->stream, &frame->chunk) != 0) {
        PyErr_SetString(PyExc_RuntimeError, "the frame cannot be read");
        return -1;
    }
    if (frame->chunk.release == NULL)
        return 0;
    for (int n = 0; n < frame->columns; n++)
        lend(frame->chunk.children[n], frame->chunk.offset, &frame->column[n]);
    frame->rows = frame->chunk.length;
    return 1;
}

void frame_close(struct frame *frame)
{
    if (frame->chunk.release != NULL)
        frame->chunk.release(&frame->chunk);
    if (frame->schema.release != NULL)
        frame->schema.release(&frame->schema);
    for (int n = 0; n < frame->columns; n++)
        free(frame->column[n].items);
    free(frame->column);
    Py_XDECREF(frame->capsule); /* which lets the stream go */
}

const uint8_t *lent_text(const struct lent *column, int64_t row, uint32_t *length)
{
    const uint8_t *view = column->values + (column->offset + row) * VIEW;
    uint32_t buffer, offset;
    memcpy(length, view, 4);
    if (*length <= INLINE)
        return view + 4;
    memcpy(&buffer, view + 8, 4);
    memcpy(&offset, view + 12, 4);
    return (const uint8_t *)column->texts[buffer] + offset;
}
