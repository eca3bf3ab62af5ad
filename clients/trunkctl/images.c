/* The images that a command works on: see images.h. */
#include "images.h"

#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "csv.h"

enum { DEPTH_MAX = 16 };

static bool images_fail(tk__images *images, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static bool images_fail(tk__images *images, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(images->why, sizeof(images->why), fmt, args);
    va_end(args);
    return false;
}

/* Takes path; copies the rest. */
static void add(tk__images *images, char *path, const char *name, const char *label)
{
    if (images->n == images->capacity) {
        images->capacity = images->capacity ? 2 * images->capacity : 256;
        images->items = tk__grow(images->items, images->capacity, sizeof(*images->items));
    }
    images->items[images->n++] =
        (tk__image){.path = path, .name = tk__copy(name), .label = label ? tk__copy(label) : NULL};
}

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && strcasecmp(text + n - m, end) == 0;
}

static bool image_name(const char *name)
{
    return ends_with(name, ".jpg") || ends_with(name, ".jpeg") || ends_with(name, ".png");
}

/* A regular file that we may read. `where` begins the sentence: "" or "labels.csv:7: ". */
static bool readable(tk__images *images, const char *where, const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0) return images_fail(images, "%s%s: %s", where, path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return images_fail(images, "%s%s: not a file", where, path);
    if (access(path, R_OK) != 0)
        return images_fail(images, "%s%s: %s", where, path, strerror(errno));
    if (st.st_size > TK__IMAGE_MAX)
        return images_fail(images, "%s%s: %lld bytes; an image has at most %d", where, path,
                           (long long)st.st_size, TK__IMAGE_MAX);
    return true;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static bool is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* All images below `dir`, in the order of their names. `skip` is how much of a path its name leaves
 * out. */
static bool walk(tk__images *images, const char *dir, size_t skip, const char *label,
                 unsigned depth)
{
    if (depth > DEPTH_MAX)
        return images_fail(images, "%s: folders nested more than %d deep", dir, DEPTH_MAX);
    struct dirent **entries = NULL;
    const int n = scandir(dir, &entries, visible, by_name);
    if (n < 0) return images_fail(images, "%s: %s", dir, strerror(errno));
    bool fine = true;
    for (int i = 0; i < n; i++) {
        char *path = fine ? tk__format("%s/%s", dir, entries[i]->d_name) : NULL;
        if (path && is_dir(path)) {
            fine = walk(images, path, skip, label, depth + 1);
        } else if (path && image_name(path)) {
            fine = readable(images, "", path);
            if (fine) add(images, tk__copy(path), path + skip, label);
        } else if (path) {
            images->passed_over++;
        }
        free(path);
        free(entries[i]);
    }
    free(entries);
    return fine;
}

/* "train", "test", ...: a folder of these holds classes and is no class. */
static bool split_name(const char *name)
{
    static const char *const names[] = {"train", "training", "test",      "testing",
                                        "val",   "valid",    "validation"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcasecmp(name, names[i]) == 0) return true;
    return false;
}

static bool class_folders(tk__images *images, const char *root)
{
    struct dirent **entries = NULL;
    const int n = scandir(root, &entries, visible, by_name);
    if (n < 0) return images_fail(images, "%s: %s", root, strerror(errno));
    bool fine = true;
    size_t splits = 0, classes = 0;
    char split[256] = "";
    for (int i = 0; i < n; i++) {
        char *path = tk__format("%s/%s", root, entries[i]->d_name);
        if (fine && is_dir(path)) {
            classes++;
            if (split_name(entries[i]->d_name))
                snprintf(split, sizeof(split), "%s", entries[i]->d_name);
            splits += split_name(entries[i]->d_name);
            fine = walk(images, path, strlen(root) + 1, entries[i]->d_name, 0);
        } else if (fine) {
            images->passed_over++;
        }
        free(path);
        free(entries[i]);
    }
    free(entries);
    if (fine && classes == 0)
        return images_fail(
            images, "%s: no folders in it; each class is a folder of its own: %s/CLASS/IMAGE.jpg",
            root, root);
    if (fine && splits == classes)
        return images_fail(images, "%s holds a split, not classes; did you mean %s/%s?", root, root,
                           split);
    return fine;
}

/* Does the present record have the value that a "column=value" asks? `column` is its index. */
static bool holds(const tk__csv *csv, int column, const char *where)
{
    return strcmp(csv->fields[column], strchr(where, '=') + 1) == 0;
}

/* Index of the column or a sentence that lists the ones there are. */
static bool find_column(tk__images *images, const tk__csv *csv, const char *name, int *out)
{
    *out = tk__csv_column(csv, name);
    if (*out >= 0) return true;
    char found[400] = "";
    for (size_t i = 0, at = 0; i < csv->n && at < sizeof(found); i++)
        at += (size_t)snprintf(found + at, sizeof(found) - at, "%s\"%.40s\"", i ? ", " : "",
                               csv->fields[i]);
    return images_fail(images,
                       "%s:%lu: no column \"%s\"; the first line has to name the columns, as in "
                       "file,label; it has: %s",
                       csv->path, csv->record, name, found);
}

typedef struct csv_columns {
    int file, label, *where;
    size_t n; /* of the header */
} csv_columns;

static bool read_header(tk__images *images, const tk__csv *csv, const tk__csv_opts *opts,
                        csv_columns *columns)
{
    columns->n = csv->n;
    if (!find_column(images, csv, opts->file_column ? opts->file_column : "file", &columns->file))
        return false;
    if (!find_column(images, csv, opts->label_column ? opts->label_column : "label",
                     &columns->label))
        return false;
    for (size_t i = 0; opts->where && i < opts->where->n; i++) {
        char name[256];
        const char *where = opts->where->items[i], *equals = strchr(where, '=');
        if (!equals) return images_fail(images, "--where %s: expected COLUMN=VALUE", where);
        snprintf(name, sizeof(name), "%.*s", (int)(equals - where), where);
        if (!find_column(images, csv, name, &columns->where[i])) return false;
    }
    return true;
}

/* Adds the present record's image, or passes it over. `base` is the length of the CSV's folder with
 * its slash. */
static bool take_record(tk__images *images, const tk__csv *csv, const tk__csv_opts *opts,
                        const csv_columns *columns, int base)
{
    char where[600];
    snprintf(where, sizeof(where), "%.500s:%lu: ", csv->path, csv->record);
    if (csv->n != columns->n)
        return images_fail(images, "%s%zu fields where the header has %zu", where, csv->n,
                           columns->n);
    for (size_t i = 0; opts->where && i < opts->where->n; i++)
        if (!holds(csv, columns->where[i], opts->where->items[i])) return true;
    const char *file = csv->fields[columns->file], *label = csv->fields[columns->label];
    if (!*file) return images_fail(images, "%sno file", where);
    if (!*label) return images_fail(images, "%sno label", where);
    char *path = *file == '/' ? tk__copy(file) : tk__format("%.*s%s", base, csv->path, file);
    if (!readable(images, where, path)) {
        free(path);
        return false;
    }
    add(images, path, file, label);
    return true;
}

static bool read_csv(tk__images *images, const char *path, const tk__csv_opts *opts)
{
    tk__csv csv;
    csv_columns columns = {.where = tk__alloc(opts->where ? opts->where->n : 0, sizeof(int))};
    const char *slash = strrchr(path, '/');
    bool fine = tk__csv_open(&csv, path) && tk__csv_next(&csv);
    if (!fine) images_fail(images, "%s", csv.why[0] ? csv.why : "the CSV is empty");
    fine = fine && read_header(images, &csv, opts, &columns);
    while (fine && tk__csv_next(&csv))
        fine = take_record(images, &csv, opts, &columns, slash ? (int)(slash - path) + 1 : 0);
    if (fine && csv.why[0]) fine = images_fail(images, "%s", csv.why);
    tk__csv_close(&csv);
    free(columns.where);
    return fine;
}

static int by_label_and_name(const void *a, const void *b)
{
    const tk__image *x = a, *y = b;
    const int order = strcmp(x->label, y->label);
    return order ? order : strcmp(x->name, y->name);
}

bool tk__images_labelled(tk__images *images, const char *path, const tk__csv_opts *opts)
{
    *images = (tk__images){0};
    char *root = tk__copy(path);
    for (size_t n = strlen(root); n > 1 && root[n - 1] == '/';)
        root[--n] = '\0';
    const bool dir = is_dir(root);
    bool fine = dir ? class_folders(images, root) : false;
    if (!dir && access(path, F_OK) != 0)
        images_fail(images, "%s: %s", path, strerror(errno));
    else if (!dir && !ends_with(path, ".csv"))
        images_fail(images, "%s: neither a folder nor a .csv file", path);
    else if (!dir)
        fine = read_csv(images, path, opts);
    if (fine && images->n == 0)
        fine = images_fail(images, "%s: no %s", path,
                           dir ? "image in it (.jpg, .jpeg or .png)" : "image is named");
    if (fine) qsort(images->items, images->n, sizeof(*images->items), by_label_and_name);
    free(root);
    return fine;
}

bool tk__images_plain(tk__images *images, const char *path)
{
    const size_t before = images->n;
    if (!is_dir(path)) {
        if (!readable(images, "", path)) return false;
        add(images, tk__copy(path), path, NULL);
        return true;
    }
    char *root = tk__copy(path);
    for (size_t n = strlen(root); n > 1 && root[n - 1] == '/';)
        root[--n] = '\0';
    const bool fine = walk(images, root, 0, NULL, 0);
    free(root);
    if (fine && images->n == before)
        return images_fail(images, "%s: no image in it (.jpg, .jpeg or .png)", path);
    return fine;
}

void tk__images_free(tk__images *images)
{
    for (size_t i = 0; i < images->n; i++) {
        free(images->items[i].path);
        free(images->items[i].name);
        free(images->items[i].label);
    }
    free(images->items);
    images->items = NULL;
    images->n = images->capacity = 0;
}

bool tk__read_image(const char *path, uint8_t **data, size_t *capacity, size_t *size, char *why,
                    size_t why_size)
{
    *size = 0;
    FILE *file = fopen(path, "re");
    bool fine = file != NULL;
    while (fine && !feof(file) && *size <= TK__IMAGE_MAX) {
        if (*size == *capacity) {
            *capacity = *capacity ? 2 * *capacity : 65536;
            *data = tk__grow(*data, *capacity, 1);
        }
        *size += fread(*data + *size, 1, *capacity - *size, file);
        fine = !ferror(file);
    }
    if (!fine) snprintf(why, why_size, "%s: %s", path, strerror(errno));
    if (fine && *size > TK__IMAGE_MAX) {
        snprintf(why, why_size, "%s: more than %d bytes", path, TK__IMAGE_MAX);
        fine = false;
    }
    if (file) fclose(file);
    return fine;
}
