/* What an HLL sketch of Apache DataSketches sees of a text: 26 bits of its hash, and how many zeros the rest begins with.
 *
 * The hash is Austin Appleby's MurmurHash3_x64_128, which is in the public domain, with DataSketches' seed; the rest is
 * DataSketches' HllUtil::coupon. */

#include <string.h>

#include "arrow.h"
#include "rows.h"

#define SEED 9001
#define C1 0x87c37b91114253d5u
#define C2 0x4cf5ad432745937fu

static uint64_t rotate(uint64_t value, int by)
{
    return value << by | value >> (64 - by);
}

static uint64_t mix(uint64_t hash)
{
    hash = (hash ^ hash >> 33) * 0xff51afd7ed558ccdu;
    hash = (hash ^ hash >> 33) * 0xc4ceb9fe1a85ec53u;
    return hash ^ hash >> 33;
}

/* As on little-endian machines, wherever this runs. */
static uint64_t word(const uint8_t *bytes, uint32_t length)
{
    uint64_t value = 0;
    for (uint32_t n = 0; n < length; n++)
        value |= (uint64_t)bytes[n] << (8 * n);
    return value;
}

static uint32_t coupon(const uint8_t *bytes, uint32_t length)
{
    uint64_t first = SEED, second = SEED;
    const uint8_t *tail = bytes + length / 16 * 16;
    uint32_t rest = length % 16;
    for (; bytes < tail; bytes += 16) {
        first ^= rotate(word(bytes, 8) * C1, 31) * C2;
        first = (rotate(first, 27) + second) * 5 + 0x52dce729;
        second ^= rotate(word(bytes + 8, 8) * C2, 33) * C1;
        second = (rotate(second, 31) + first) * 5 + 0x38495ab5;
    }
    if (rest > 8)
        second ^= rotate(word(tail + 8, rest - 8) * C2, 33) * C1;
    if (rest > 0)
        first ^= rotate(word(tail, rest < 8 ? rest : 8) * C1, 31) * C2;
    first ^= length;
    second ^= length;
    first += second;
    second += first;
    first = mix(first);
    second = mix(second);
    first += second;
    second += first;
    uint32_t zeros = second == 0 ? 64 : (uint32_t)__builtin_clzll(second);
    return ((zeros < 62 ? zeros : 62) + 1) << 26 | (uint32_t)(first & 0x3ffffff);
}

PyObject *coupons_of(PyObject *Py_UNUSED(module), PyObject *given)
{
    static const uint8_t NOTHING[] = {0}; /* stands for an empty text, which DataSketches passes over */
    struct frame frame;
    PyObject *found = NULL, *parts = PyList_New(0);
    int more = parts != NULL && frame_open(&frame, given) ? 1 : -1;
    if (more == 1 && (frame.columns != 1 || frame.column[0].layout != VIEWS)) {
        PyErr_SetString(PyExc_TypeError, "not one column of texts");
        more = -1;
    }
    while (more == 1 && (more = frame_next(&frame)) == 1) {
        PyObject *part = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(frame.rows * 4));
        if (part == NULL || PyList_Append(parts, part) < 0) {
            Py_XDECREF(part);
            more = -1;
            break;
        }
        uint8_t *place = (uint8_t *)PyBytes_AsString(part);
        Py_BEGIN_ALLOW_THREADS
        for (int64_t row = 0; row < frame.rows; row++) {
            uint32_t length = 0, one = 0;
            if (!lent_is_null(&frame.column[0], row)) {
                const uint8_t *text = lent_text(&frame.column[0], row, &length);
                one = length == 0 ? coupon(NOTHING, 1) : coupon(text, length);
            }
            memcpy(place + row * 4, &one, 4);
        }
        Py_END_ALLOW_THREADS
        Py_DECREF(part); /* the list has it */
    }
    if (more == 0) {
        PyObject *nothing = PyBytes_FromStringAndSize("", 0);
        found = nothing == NULL ? NULL : PyObject_CallMethod(nothing, "join", "O", parts);
        Py_XDECREF(nothing);
    }
    if (parts != NULL)
        frame_close(&frame);
    Py_XDECREF(parts);
    return found;
}
