/* One JSON record: a strict reader that gives up on whatever is out of the ordinary.
 *
 * Left to others, that is: \u escapes, control characters, whitespace other than spaces, bytes that are not UTF-8,
 * escapes in keys, a key of the contract that stands twice, a value of another type than the contract's, numbers
 * with more digits than all readers agree on, deep nesting, and everything that is not JSON.
 */

#include <string.h>

#include "records.h"

#define DEEPEST 64
/* A double holds integers of 15 digits and powers of ten up to 22 exactly, so one division of the two rounds once. */
#define EXACT_DIGITS 15
/* So many fit an int64, whatever they are. */
#define INTEGER_DIGITS 18
/* Of numbers nobody reads. */
#define MOST_DIGITS 30

static const double POWERS[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15};

struct reader {
    const uint8_t *at, *end;
    bool escapes; /* there is a backslash somewhere */
    struct scan *scan;
};

static bool read_value(struct reader *reader, const struct node *node, int depth);

static inline void skip_spaces(struct reader *reader)
{
    while (reader->at < reader->end && *reader->at == ' ')
        reader->at++;
}

static inline bool take(struct reader *reader, uint8_t byte)
{
    if (reader->at == reader->end || *reader->at != byte)
        return false;
    reader->at++;
    return true;
}

static bool word(struct reader *reader, const char *letters, size_t length)
{
    if ((size_t)(reader->end - reader->at) < length || memcmp(reader->at, letters, length) != 0)
        return false;
    reader->at += length;
    return true;
}

/* A string, from behind its opening quote to behind its closing one. */
static bool read_text(struct reader *reader, const uint8_t **start, int32_t *length, bool *escapes)
{
    const uint8_t *at = reader->at;
    const uint8_t *quote = memchr(at, '"', (size_t)(reader->end - at));
    if (quote == NULL)
        return false;
    *escapes = false;
    if (reader->escapes && memchr(at, '\\', (size_t)(quote - at)) != NULL) {
        *escapes = true;
        for (quote = at; quote < reader->end && *quote != '"'; quote++) {
            if (*quote == '\\' && (++quote == reader->end || *quote == 0 || strchr("\"\\/bfnrt", *quote) == NULL))
                return false;
        }
        if (quote >= reader->end)
            return false;
    }
    *start = at;
    *length = (int32_t)(quote - at);
    reader->at = quote + 1;
    return true;
}

/* The digits here; leaves the first digits of the value in `value` as long as they fit. */
static inline int digits(struct reader *reader, uint64_t *value)
{
    const uint8_t *start = reader->at;
    for (; reader->at < reader->end && *reader->at >= '0' && *reader->at <= '9'; reader->at++) {
        if (reader->at - start > MOST_DIGITS)
            break;
        *value = *value * 10 + (uint64_t)(*reader->at - '0'); /* may wrap: whoever wants it counts the digits */
    }
    return (int)(reader->at - start);
}

static bool read_number(struct reader *reader, const struct node *node, struct cell *cell)
{
    bool negative = take(reader, '-');
    bool zero = reader->at < reader->end && *reader->at == '0';
    uint64_t value = 0;
    int whole = digits(reader, &value), fraction = 0;
    if (whole == 0 || (zero && whole > 1))
        return false;
    if (take(reader, '.')) {
        fraction = digits(reader, &value);
        if (fraction == 0)
            return false;
    }
    if (whole + fraction > MOST_DIGITS)
        return false;
    if (reader->at < reader->end && (*reader->at == 'e' || *reader->at == 'E')) {
        if (node != NULL && node->kind != SOURCE)
            return false;
        reader->at++;
        if (!take(reader, '-'))
            take(reader, '+');
        uint64_t exponent = 0;
        int size = digits(reader, &exponent);
        if (size == 0 || size > 2)
            return false;
    }
    if (node == NULL || node->kind == SOURCE)
        return true;
    if (negative && value == 0)
        return false; /* readers differ about the sign of zero */
    if (node->kind == INTEGER) {
        cell->as.integer = negative ? -(int64_t)value : (int64_t)value;
        return fraction == 0 && whole <= INTEGER_DIGITS;
    }
    cell->as.number = (negative ? -(double)value : (double)value) / POWERS[fraction < EXACT_DIGITS ? fraction : 0];
    return whole + fraction <= EXACT_DIGITS;
}

static bool read_array(struct reader *reader, int depth)
{
    reader->at++;
    skip_spaces(reader);
    if (take(reader, ']'))
        return true;
    for (;;) {
        if (!read_value(reader, NULL, depth + 1))
            return false;
        skip_spaces(reader);
        if (take(reader, ']'))
            return true;
        if (!take(reader, ','))
            return false;
        skip_spaces(reader);
    }
}

/* The child of that name. Members mostly come in the contract's order, so the one behind the last is tried first. */
static const struct node *child_of(const struct node *node, const uint8_t *key, int32_t length, int *next)
{
    for (int n = 0; n < node->children; n++) {
        int number = *next + n < node->children ? *next + n : *next + n - node->children;
        const struct node *child = &node->child[number];
        if (child->length == length && memcmp(child->key, key, (size_t)length) == 0) {
            *next = number + 1 < node->children ? number + 1 : 0;
            return child;
        }
    }
    return NULL;
}

/* `node`: an OBJECT, or NULL when nobody wants its members. */
static bool read_object(struct reader *reader, const struct node *node, int depth)
{
    int next = 0;
    reader->at++;
    skip_spaces(reader);
    if (take(reader, '}'))
        return true;
    for (;;) {
        const uint8_t *key;
        int32_t length;
        bool escapes;
        if (!take(reader, '"') || !read_text(reader, &key, &length, &escapes))
            return false;
        skip_spaces(reader);
        if (!take(reader, ':'))
            return false;
        skip_spaces(reader);
        const struct node *child = NULL;
        if (node != NULL) {
            if (escapes)
                return false; /* it could spell a key of the contract */
            child = child_of(node, key, length, &next);
        }
        if (child != NULL) {
            if (reader->scan->seen[child->number] == reader->scan->record)
                return false; /* it stands twice */
            reader->scan->seen[child->number] = reader->scan->record;
        }
        if (!read_value(reader, child, depth + 1))
            return false;
        skip_spaces(reader);
        if (take(reader, '}'))
            return true;
        if (!take(reader, ','))
            return false;
        skip_spaces(reader);
    }
}

static bool skip_value(struct reader *reader, int depth)
{
    const uint8_t *start;
    int32_t length;
    bool escapes;
    struct cell nothing;
    if (reader->at == reader->end || depth > DEEPEST)
        return false;
    switch (*reader->at) {
    case '"':
        reader->at++;
        return read_text(reader, &start, &length, &escapes);
    case '{':
        return read_object(reader, NULL, depth);
    case '[':
        return read_array(reader, depth);
    case 't':
        return word(reader, "true", 4);
    case 'f':
        return word(reader, "false", 5);
    case 'n':
        return word(reader, "null", 4);
    default:
        return read_number(reader, NULL, &nothing);
    }
}

static bool read_value(struct reader *reader, const struct node *node, int depth)
{
    if (node == NULL)
        return skip_value(reader, depth);
    if (reader->at == reader->end || depth > DEEPEST)
        return false;
    if (*reader->at == 'n') { /* whatever the kind */
        if (node->column >= 0)
            reader->scan->cells[node->column].found = false;
        return word(reader, "null", 4);
    }
    if (node->kind == OBJECT)
        return *reader->at == '{' && read_object(reader, node, depth);
    struct cell *cell = &reader->scan->cells[node->column];
    cell->found = true;
    cell->escapes = false;
    switch (node->kind) {
    case TEXT:
        return take(reader, '"') && read_text(reader, &cell->as.text, &cell->length, &cell->escapes);
    case SOURCE:
        cell->as.text = reader->at;
        if (!skip_value(reader, depth))
            return false;
        cell->length = (int32_t)(reader->at - cell->as.text);
        return true;
    case BOOLEAN:
        cell->as.flag = *reader->at == 't';
        return cell->as.flag ? word(reader, "true", 4) : word(reader, "false", 5);
    default:
        return read_number(reader, node, cell);
    }
}

/* Whether there are only characters in it that UTF-8 can have; `bytes` has some beyond ASCII. */
static bool is_utf8(const uint8_t *bytes, size_t length)
{
    for (size_t n = 0; n < length;) {
        uint8_t lead = bytes[n];
        if (lead < 0x80) {
            n++;
            continue;
        }
        size_t more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
        if (lead < 0xc2 || lead > 0xf4 || length - n <= more)
            return false;
        uint8_t second = bytes[n + 1];
        /* overlong forms, surrogates, beyond U+10FFFF */
        if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) || (lead == 0xf0 && second < 0x90) ||
            (lead == 0xf4 && second > 0x8f))
            return false;
        for (size_t k = 1; k <= more; k++)
            if ((bytes[n + k] & 0xc0) != 0x80)
                return false;
        n += more + 1;
    }
    return true;
}

bool scan_record(struct scan *scan, const uint8_t *bytes, size_t length)
{
    if (length > INT32_MAX)
        return false;
    uint8_t control = 0, beyond = 0, backslash = 0;
    for (size_t n = 0; n < length; n++) { /* without a branch: sixteen bytes at a time */
        control |= bytes[n] < 0x20;
        beyond |= bytes[n] & 0x80;
        backslash |= bytes[n] == '\\';
    }
    if (control || (beyond && !is_utf8(bytes, length)))
        return false;
    struct reader reader = {bytes, bytes + length, backslash, scan};
    scan->record++;
    skip_spaces(&reader);
    if (reader.at == reader.end || *reader.at != '{' || !read_object(&reader, &scan->plan->root, 0))
        return false;
    skip_spaces(&reader);
    return reader.at == reader.end;
}
