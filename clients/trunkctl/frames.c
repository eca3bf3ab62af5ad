/* Cutting a stream into JPEG frames by their markers (ITU T.81, annex B): a frame runs from SOI to
 * EOI. Segments are passed over by their length, so that a thumbnail in one does not end the frame;
 * entropy-coded data ends at the first FF that is followed by neither 00 nor a restart marker. */
#include "frames.h"

#include <stdlib.h>

#include "ctl.h"
#include "images.h"

enum { SOI = 0xd8, EOI = 0xd9, SOS = 0xda, TEM = 0x01, RST0 = 0xd0, RST7 = 0xd7 };

/* One byte more into the frame, or EOF; EOF too when the frame is too large to be one. */
static int take(tk__frames *frames)
{
    const int c = frames->size < TK__IMAGE_MAX ? getc(frames->file) : EOF;
    if (c == EOF) return EOF;
    if (frames->size == frames->capacity) {
        frames->capacity = frames->capacity ? 2 * frames->capacity : 65536;
        frames->data = tk__grow(frames->data, frames->capacity, 1);
    }
    frames->data[frames->size++] = (uint8_t)c;
    return c;
}

/* Drops bytes up to and with the next SOI, which begins the frame. */
static bool find_start(tk__frames *frames)
{
    frames->size = 0;
    for (int last = 0, c; (c = getc(frames->file)) != EOF; last = c) {
        if (last == 0xff && c == SOI) {
            frames->dropped--; /* the FF */
            ungetc(SOI, frames->file);
            frames->capacity = frames->capacity ? frames->capacity : 65536;
            frames->data = tk__grow(frames->data, frames->capacity, 1);
            frames->data[frames->size++] = 0xff;
            return take(frames) == SOI;
        }
        frames->dropped++;
    }
    return false;
}

/* Passes over a segment by its length field. */
static bool take_segment(tk__frames *frames)
{
    const int high = take(frames), low = take(frames);
    if (high == EOF || low == EOF) return false;
    for (int left = (high << 8 | low) - 2; left > 0; left--)
        if (take(frames) == EOF) return false;
    return true;
}

/* Passes over entropy-coded data; returns the marker that ends it, or EOF. */
static int take_scan(tk__frames *frames)
{
    for (int c = take(frames); c != EOF; c = take(frames)) {
        if (c != 0xff) continue;
        do
            c = take(frames);
        while (c == 0xff);
        if (c != 0 && !(c >= RST0 && c <= RST7)) return c;
    }
    return EOF;
}

/* The next marker's second byte, or EOF when what follows is none. */
static int take_marker(tk__frames *frames)
{
    if (take(frames) != 0xff) return EOF;
    int c = take(frames);
    while (c == 0xff)
        c = take(frames);
    return c;
}

bool tk__frames_next(tk__frames *frames)
{
    while (find_start(frames)) {
        int marker = take_marker(frames);
        while (marker != EOF && marker != EOI) {
            const bool alone = marker == TEM || (marker >= RST0 && marker <= RST7);
            if (!alone && !take_segment(frames))
                marker = EOF;
            else
                marker = marker == SOS ? take_scan(frames) : take_marker(frames);
        }
        if (marker == EOI) {
            frames->count++;
            return true;
        }
        frames->dropped += frames->size;
    }
    return false;
}

void tk__frames_free(tk__frames *frames)
{
    free(frames->data);
    frames->data = NULL;
    frames->size = frames->capacity = 0;
}
