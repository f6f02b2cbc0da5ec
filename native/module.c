/* streamproc._records: the functions as Python sees them. streamproc/transform/scanner.py says what they are for. */

#include <stdlib.h>
#include <string.h>

#include "records.h"
#include "rows.h"

/* -- Column ----------------------------------------------------------------------------------------------------- */

struct column_object {
    PyObject_HEAD
    struct column *column;
};

static PyTypeObject *column_type, *plan_type;

static PyObject *column_arrow(PyObject *self, PyObject *args, PyObject *named)
{
    static char *names[] = {"requested_schema", NULL};
    PyObject *requested = Py_None; /* a wish that nobody has to grant */
    if (!PyArg_ParseTupleAndKeywords(args, named, "|O", names, &requested))
        return NULL;
    return column_export(((struct column_object *)self)->column);
}

static Py_ssize_t column_length(PyObject *self)
{
    return (Py_ssize_t)((struct column_object *)self)->column->rows;
}

static void column_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    column_drop(((struct column_object *)self)->column);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyMethodDef column_methods[] = {
    {"__arrow_c_array__", (PyCFunction)(void (*)(void))column_arrow, METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot column_slots[] = {
    {Py_tp_doc, "Values of one field, by the Arrow PyCapsule interface. Whoever imports it shares its memory."},
    {Py_tp_methods, column_methods},
    {Py_sq_length, column_length},
    {Py_tp_dealloc, column_dealloc},
    {0, NULL},
};

static PyType_Spec column_spec = {
    "streamproc._records.Column", sizeof(struct column_object), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, column_slots,
};

/* Takes the reference. */
static PyObject *column_wrap(struct column *column)
{
    allocfunc allocate = (allocfunc)PyType_GetSlot(column_type, Py_tp_alloc);
    struct column_object *self = (struct column_object *)allocate(column_type, 0);
    if (self == NULL) {
        column_drop(column);
        return NULL;
    }
    self->column = column;
    return (PyObject *)self;
}

/* -- Plan ------------------------------------------------------------------------------------------------------- */

struct plan_object {
    PyObject_HEAD
    struct plan plan;
};

static void clear_node(struct node *node)
{
    for (int n = 0; n < node->children; n++)
        clear_node(&node->child[n]);
    free(node->child);
    free(node->key);
}

/* `members`: a tuple of (key, kind, members). Numbers nodes and columns in reading order. */
static bool fill_children(struct plan *plan, struct node *node, PyObject *members)
{
    Py_ssize_t count = PyTuple_Size(members);
    if (count < 0)
        return false;
    node->child = calloc((size_t)count + 1, sizeof *node->child);
    if (node->child == NULL)
        return PyErr_NoMemory(), false;
    for (Py_ssize_t n = 0; n < count; n++) {
        struct node *child = &node->child[n];
        char *key;
        int kind;
        PyObject *inner, *member = PyTuple_GetItem(members, n);
        if (member == NULL || !PyArg_ParseTuple(member, "y#iO", &key, &child->length, &kind, &inner))
            return false;
        if (kind < TEXT || kind > OBJECT)
            return PyErr_SetString(PyExc_ValueError, "no such kind"), false;
        if ((child->key = malloc((size_t)child->length + 1)) == NULL)
            return PyErr_NoMemory(), false;
        memcpy(child->key, key, (size_t)child->length);
        child->kind = (enum kind)kind;
        child->number = plan->nodes++;
        child->column = kind == OBJECT ? -1 : plan->columns++;
        node->children++;
        if (!fill_children(plan, child, inner))
            return false;
    }
    return true;
}

static void note_leaves(struct plan *plan, struct node *node)
{
    if (node->column >= 0)
        plan->leaf[node->column] = node;
    for (int n = 0; n < node->children; n++)
        note_leaves(plan, &node->child[n]);
}

static PyObject *plan_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(named))
{
    PyObject *members;
    if (!PyArg_ParseTuple(args, "O!:Plan", &PyTuple_Type, &members))
        return NULL;
    struct plan_object *self = (struct plan_object *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self == NULL)
        return NULL;
    struct plan *plan = &self->plan;
    plan->root.kind = OBJECT;
    plan->root.column = -1;
    if (!fill_children(plan, &plan->root, members)) {
        Py_DECREF(self);
        return NULL;
    }
    plan->leaf = calloc((size_t)plan->columns + 1, sizeof *plan->leaf);
    if (plan->leaf == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    note_leaves(plan, &plan->root);
    return (PyObject *)self;
}

static void plan_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    struct plan *plan = &((struct plan_object *)self)->plan;
    clear_node(&plan->root);
    free(plan->leaf);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* A payload and the spans of records in it. */
struct part {
    Py_buffer payload, spans;
    Py_ssize_t count;
};

static void release_parts(struct part *parts, Py_ssize_t count)
{
    for (Py_ssize_t n = 0; n < count; n++) {
        PyBuffer_Release(&parts[n].payload);
        PyBuffer_Release(&parts[n].spans);
    }
    free(parts);
}

/* The buffers of `given`, a list of (payload, spans); NULL with an exception set. */
static struct part *parts_of(PyObject *given, Py_ssize_t *records, size_t *size)
{
    Py_ssize_t count = PyList_Size(given);
    struct part *parts = count < 0 ? NULL : calloc((size_t)count + 1, sizeof *parts);
    if (parts == NULL)
        return count < 0 ? NULL : (PyErr_NoMemory(), NULL);
    for (Py_ssize_t n = 0; n < count; n++) {
        PyObject *payload, *spans;
        if (!PyArg_ParseTuple(PyList_GetItem(given, n), "OO", &payload, &spans) ||
            PyObject_GetBuffer(payload, &parts[n].payload, PyBUF_SIMPLE) < 0) {
            release_parts(parts, n);
            return NULL;
        }
        if (PyObject_GetBuffer(spans, &parts[n].spans, PyBUF_SIMPLE) < 0) {
            PyBuffer_Release(&parts[n].payload);
            release_parts(parts, n);
            return NULL;
        }
        parts[n].count = parts[n].spans.len / (Py_ssize_t)sizeof(struct span);
        *records += parts[n].count;
        *size += (size_t)parts[n].payload.len;
    }
    return parts;
}

/* Every span must lie in its payload: what follows does not look again. */
static bool spans_fit(const struct part *part)
{
    const struct span *spans = part->spans.buf;
    for (Py_ssize_t n = 0; n < part->count; n++)
        if (spans[n].length > 0 && (spans[n].start < 0 || spans[n].start > part->payload.len - spans[n].length))
            return false;
    return true;
}

static void scan_part(struct scan *scan, const struct part *part, int64_t most, struct column **columns, char *doubtful)
{
    const struct span *spans = part->spans.buf;
    const uint8_t *payload = part->payload.buf;
    for (Py_ssize_t n = 0; n < part->count; n++) {
        doubtful[n] = spans[n].length < 0 || spans[n].length > most ||
                      !scan_record(scan, payload + spans[n].start, (size_t)spans[n].length);
        if (doubtful[n])
            continue;
        for (int c = 0; c < scan->plan->columns; c++) {
            bool seen = scan->seen[scan->plan->leaf[c]->number] == scan->record;
            column_append(columns[c], seen ? &scan->cells[c] : NULL);
        }
    }
}

static PyObject *wrap_columns(struct column **columns, int count)
{
    PyObject *wrapped = PyTuple_New(count);
    for (int c = 0; c < count; c++) {
        PyObject *column = wrapped == NULL ? (column_drop(columns[c]), NULL) : column_wrap(columns[c]);
        if (wrapped != NULL && (column == NULL || PyTuple_SetItem(wrapped, c, column) < 0))
            Py_CLEAR(wrapped);
        columns[c] = NULL;
    }
    return wrapped;
}

static PyObject *plan_scan(PyObject *self, PyObject *args)
{
    const struct plan *plan = &((struct plan_object *)self)->plan;
    PyObject *given, *wrapped = NULL, *doubtful = NULL;
    long long most;
    Py_ssize_t records = 0;
    size_t size = 0;
    if (!PyArg_ParseTuple(args, "O!L:scan", &PyList_Type, &given, &most))
        return NULL;
    struct part *parts = parts_of(given, &records, &size);
    if (parts == NULL)
        return NULL;
    Py_ssize_t count = PyList_Size(given);
    struct scan scan = {plan, calloc((size_t)plan->columns + 1, sizeof(struct cell)),
                        calloc((size_t)plan->nodes + 1, sizeof(int64_t)), 0};
    struct column **columns = calloc((size_t)plan->columns + 1, sizeof *columns);
    struct texts *texts = size > INT32_MAX ? NULL : texts_new(size);
    bool fits = true, ready = scan.cells != NULL && scan.seen != NULL && columns != NULL && texts != NULL;
    for (int c = 0; ready && c < plan->columns; c++)
        ready = (columns[c] = column_new(plan->leaf[c]->kind, records, texts)) != NULL;
    for (Py_ssize_t n = 0; n < count; n++)
        fits = fits && spans_fit(&parts[n]);
    if (size > INT32_MAX)
        PyErr_SetString(PyExc_OverflowError, "more than 2 GiB of records at once");
    else if (!ready)
        PyErr_NoMemory();
    else if (!fits)
        PyErr_SetString(PyExc_ValueError, "a span is outside of its payload");
    else if ((doubtful = PyBytes_FromStringAndSize(NULL, records)) != NULL) {
        char *marks = PyBytes_AsString(doubtful);
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t n = 0; n < count; marks += parts[n].count, n++)
            scan_part(&scan, &parts[n], most, columns, marks);
        Py_END_ALLOW_THREADS
        wrapped = wrap_columns(columns, plan->columns);
    }
    for (int c = 0; columns != NULL && c < plan->columns; c++)
        column_drop(columns[c]);
    texts_drop(texts);
    free(columns);
    free(scan.cells);
    free(scan.seen);
    release_parts(parts, count);
    PyObject *found = wrapped == NULL ? NULL : PyTuple_Pack(2, doubtful, wrapped);
    Py_XDECREF(wrapped);
    Py_XDECREF(doubtful);
    return found;
}

static PyMethodDef plan_methods[] = {
    {"scan", plan_scan, METH_VARARGS,
     "scan([(payload, spans), ...], most_bytes) -> (doubtful, columns)\n\n"
     "doubtful: a byte a record, 1 for those that are in no row. columns: rows of the others, in order."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot plan_slots[] = {
    {Py_tp_doc, "Plan(members): the fields to find; members is a tuple of (key, kind, members)."},
    {Py_tp_new, plan_new},
    {Py_tp_methods, plan_methods},
    {Py_tp_dealloc, plan_dealloc},
    {0, NULL},
};

static PyType_Spec plan_spec = {
    "streamproc._records.Plan", sizeof(struct plan_object), 0, Py_TPFLAGS_DEFAULT, plan_slots,
};

/* -- functions -------------------------------------------------------------------------------------------------- */

static PyObject *walk(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer payload;
    int count;
    const char *ours;
    if (!PyArg_ParseTuple(args, "y*is:walk", &payload, &count, &ours))
        return NULL;
    PyObject *spans = NULL;
    long long size = 0;
    /* A record takes seven bytes at least: a count beyond that is not true, and need not be made room for. */
    bool fine = count >= 0 && count <= payload.len / 7;
    if (fine && (spans = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(struct span))) != NULL) {
        struct span *place = (struct span *)PyBytes_AsString(spans);
        Py_BEGIN_ALLOW_THREADS
        fine = walk_records(payload.buf, (size_t)payload.len, count, ours, place);
        for (int n = 0; fine && n < count; n++)
            size += place[n].length > 0 ? place[n].length : 0;
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&payload);
    if (!fine) {
        Py_XDECREF(spans);
        Py_RETURN_NONE;
    }
    return Py_BuildValue("(NL)", spans, size);
}

static PyMethodDef functions[] = {
    {"walk", walk, METH_VARARGS,
     "walk(payload, count, ours) -> (spans, size): int32 start and length (-1: null) of each value of a record batch's\n"
     "records, and their bytes together. None when they are not as most are: gaps in the offsets, another number, headers\n"
     "whose names begin with ours or are not ASCII."},
    {"rows", rows_of, METH_O,
     "rows(frame) -> bytes: its rows in the binary format of PostgreSQL's COPY, without the header and the end."},
    {"coupons", coupons_of, METH_O,
     "coupons(frame) -> bytes: of its one column of texts what an HLL sketch sees, a uint32 a row, 0 for a null."},
    {NULL, NULL, 0, NULL},
};

static int add_types(PyObject *module)
{
    column_type = (PyTypeObject *)PyType_FromSpec(&column_spec);
    plan_type = (PyTypeObject *)PyType_FromSpec(&plan_spec);
    if (column_type == NULL || plan_type == NULL)
        return -1;
    return PyModule_AddObjectRef(module, "Column", (PyObject *)column_type) < 0 ||
                   PyModule_AddObjectRef(module, "Plan", (PyObject *)plan_type) < 0
               ? -1
               : 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_types},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_records", "Record batches to columns. See streamproc/transform/scanner.py.", 0,
    functions, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__records(void)
{
    return PyModuleDef_Init(&definition);
}
