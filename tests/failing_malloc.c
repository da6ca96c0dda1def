/* glibc's malloc and its relatives, which fail at a chosen moment. Preloaded into failing_memory.py, which sets the
   variables directly, because calling a function to set them would allocate. */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void*, size_t),
    *__libc_memalign(size_t, size_t);

atomic_long spared = 0;   /* this many allocations succeed */
atomic_long failures = 0; /* then this many fail */
atomic_long least = 0;    /* of at least this many bytes */

static int fails(size_t bytes) {
    if (failures <= 0 || bytes < (size_t)least || spared-- > 0) return 0;
    --failures;
    errno = ENOMEM;
    return 1;
}

void* malloc(size_t bytes) { return fails(bytes) ? NULL : __libc_malloc(bytes); }
void* calloc(size_t count, size_t bytes) { return fails(count * bytes) ? NULL : __libc_calloc(count, bytes); }
void* realloc(void* old, size_t bytes) { return fails(bytes) ? NULL : __libc_realloc(old, bytes); }
void* memalign(size_t alignment, size_t bytes) { return fails(bytes) ? NULL : __libc_memalign(alignment, bytes); }
void* aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }

int posix_memalign(void** to, size_t alignment, size_t bytes) {
    void* memory = memalign(alignment, bytes);
    if (!memory) return ENOMEM;
    *to = memory;
    return 0;
}
