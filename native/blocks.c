/* Blocks of memory that are used again. A scan needs some of a few megabytes, and its columns are let go a second later; from
 * the allocator each would come as fresh pages, to be cleared when they are touched first: a third of what a scan costs. */

#include <pthread.h>
#include <stdlib.h>

#include "records.h"

/* What is kept at most, and the smallest block that is worth it. */
#define KEPT 48
#define KEPT_BYTES ((size_t)32 << 20)
#define WORTH ((size_t)64 << 10)

struct header {
    size_t capacity;
    size_t padding; /* what follows is aligned as malloc would do it */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct header *kept[KEPT];
static int count;
static size_t kept_bytes;

/* The smallest kept block that is large enough and not more than twice too large; NULL when there is none. */
static struct header *take_kept(size_t size)
{
    int best = -1;
    pthread_mutex_lock(&lock);
    for (int n = 0; n < count; n++)
        if (kept[n]->capacity >= size && kept[n]->capacity / 2 <= size &&
            (best < 0 || kept[n]->capacity < kept[best]->capacity))
            best = n;
    struct header *found = best < 0 ? NULL : kept[best];
    if (found != NULL) {
        kept[best] = kept[--count];
        kept_bytes -= found->capacity;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

void *block_take(size_t size)
{
    struct header *header = size < WORTH ? NULL : take_kept(size);
    if (header == NULL) {
        if (size > SIZE_MAX - sizeof *header || (header = malloc(sizeof *header + size)) == NULL)
            return NULL;
        header->capacity = size;
    }
    return header + 1;
}

void block_give(void *block)
{
    if (block == NULL)
        return;
    struct header *header = (struct header *)block - 1;
    bool keep = false;
    if (header->capacity >= WORTH) {
        pthread_mutex_lock(&lock);
        keep = count < KEPT && kept_bytes + header->capacity <= KEPT_BYTES;
        if (keep) {
            kept[count++] = header;
            kept_bytes += header->capacity;
        }
        pthread_mutex_unlock(&lock);
    }
    if (!keep)
        free(header);
}
