/* A stream of JPEG frames, one after another (MJPEG as ffmpeg's image2pipe writes it), cut into
 * images. */
#ifndef TRUNKCTL_FRAMES_H
#define TRUNKCTL_FRAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef struct tk__frames {
    FILE *file;
    uint64_t count;   /* frames cut so far */
    uint64_t dropped; /* bytes between frames */
    uint8_t *data;    /* of the present frame */
    size_t size, capacity;
} tk__frames;

/* The next frame, in frames->data, which stays until the next call. False: the stream has ended, an
 * unfinished frame at its end being given up. */
bool tk__frames_next(tk__frames *frames);
void tk__frames_free(tk__frames *frames);

#endif
