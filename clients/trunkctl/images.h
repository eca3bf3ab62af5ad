/* The images that a command works on: files, folders, a folder per class, or a CSV of files and
 * labels. All checked to be there and readable before anything is sent, and sorted, so that the
 * same input is the same upload. */
#ifndef TRUNKCTL_IMAGES_H
#define TRUNKCTL_IMAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ctl.h"

enum { TK__IMAGE_MAX = 60 << 20 }; /* bytes of one file: what fits into a message */

typedef struct tk__image {
    char *path;  /* to open */
    char *name;  /* for messages: relative to what was named */
    char *label; /* NULL without labels */
} tk__image;

typedef struct tk__images {
    size_t n, capacity;
    tk__image *items;
    size_t passed_over; /* files that are no .jpg, .jpeg or .png */
    char why[1024];     /* of the last failure */
} tk__images;

/* How to read a CSV; NULL fields are "file" and "label". */
typedef struct tk__csv_opts {
    const char *file_column, *label_column;
    const tk__list *where; /* "column=value", all of which must hold; may be NULL */
} tk__csv_opts;

/* Labelled images of `path`: a CSV (by its name's end), or a folder with a folder per class. Sorted
 * by label, then file. False: images->why. */
bool tk__images_labelled(tk__images *images, const char *path, const tk__csv_opts *opts);
/* Adds a file, or all images of a folder and the folders in it, sorted. False: images->why. */
bool tk__images_plain(tk__images *images, const char *path);
void tk__images_free(tk__images *images);
/* Reads a whole file into *data (grown as needed, *capacity its size). False: *why (static or
 * within images). */
bool tk__read_image(const char *path, uint8_t **data, size_t *capacity, size_t *size, char *why,
                    size_t why_size);

#endif
