/* Functions of a frame, as Python calls them. */
#ifndef STREAMPROC_ROWS_H
#define STREAMPROC_ROWS_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

/* rows.c */
PyObject *rows_of(PyObject *module, PyObject *frame);
/* coupons.c */
PyObject *coupons_of(PyObject *module, PyObject *frame);

#endif
