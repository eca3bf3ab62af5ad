/* A checksum of bytes: against a damaged disk and for finding equals, not against an enemy. */
#ifndef HEADS_HASH_H
#define HEADS_HASH_H

#include <stdint.h>
#include <string.h>

/* FNV-1a over 64-bit words (the rest byte by byte), going on from `h`; 0 to begin with. */
static inline uint64_t tk__hash(uint64_t h, const void *data, size_t size)
{
    const uint8_t *p = data;
    for (; size >= 8; p += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        h = (h ^ word) * 0x100000001b3u;
        h ^= h >> 29;
    }
    for (; size > 0; p++, size--)
        h = (h ^ *p) * 0x100000001b3u;
    return h;
}

#endif
