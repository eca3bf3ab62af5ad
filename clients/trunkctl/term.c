/* Writing for people: see term.h. */
#include "term.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ctl.h"

/* Length of the UTF-8 sequence at p and its code point; 0 when it is none (RFC 3629). */
static size_t utf8_at(const unsigned char *p, uint32_t *code)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const size_t n = p[0] < 0x80 ? 1 : p[0] >= 0xf0 && p[0] < 0xf8 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (n == 1) {
        *code = p[0];
        return 1;
    }
    if (p[0] < 0xc2 || p[0] > 0xf4) return 0;
    *code = p[0] & (0xffU >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80) return 0;
        *code = *code << 6 | (p[i] & 0x3fU);
    }
    const bool surrogate = *code >= 0xd800 && *code < 0xe000;
    return *code < least[n] || *code > 0x10ffff || surrogate ? 0 : n;
}

/* Code points that steer a terminal or the order of its text. */
static bool harmful(uint32_t code)
{
    return code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x061c ||
           (code >= 0x200e && code <= 0x200f) || (code >= 0x2028 && code <= 0x202e) ||
           (code >= 0x2066 && code <= 0x2069) || code == 0xfeff;
}

/* Copies text to `to` (at least strlen + 1 bytes), harmless. */
static void clean_into(char *to, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p;) {
        uint32_t code = 0;
        const size_t n = utf8_at(p, &code);
        if (n == 0 || harmful(code)) {
            *to++ = '?';
        } else {
            memcpy(to, p, n);
            to += n;
        }
        p += n ? n : 1;
    }
    *to = '\0';
}

char *tk__clean(const char *text)
{
    char *copy = tk__alloc(strlen(text) + 1, 1);
    clean_into(copy, text);
    return copy;
}

void tk__put(FILE *out, const char *text)
{
    char *copy = tk__clean(text);
    fputs(copy, out);
    free(copy);
}

size_t tk__width(const char *text)
{
    size_t width = 0;
    for (const unsigned char *p = (const unsigned char *)text; *p;) {
        uint32_t code = 0;
        const size_t n = utf8_at(p, &code);
        const bool combining = (code >= 0x300 && code < 0x370) || code == 0x200b || code == 0x200d;
        const bool wide = (code >= 0x1100 && code < 0x1160) || (code >= 0x2e80 && code < 0xa4d0) ||
                          (code >= 0xac00 && code < 0xd7a4) || (code >= 0xf900 && code < 0xfb00) ||
                          (code >= 0xfe30 && code < 0xfe70) || (code >= 0xff00 && code < 0xff61) ||
                          (code >= 0x1f300 && code < 0x1fb00) ||
                          (code >= 0x20000 && code < 0x40000);
        width += combining ? 0 : wide ? 2 : 1;
        p += n ? n : 1;
    }
    return width;
}

void tk__table_init(tk__table *table, const char *align)
{
    *table = (tk__table){.columns = strlen(align), .align = align};
}

void tk__table_cell(tk__table *table, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    table->cells = tk__grow(table->cells, table->n + 1, sizeof(*table->cells));
    table->cells[table->n++] = tk__clean(text);
}

static void pad(FILE *out, size_t n)
{
    for (; n; n--)
        fputc(' ', out);
}

static void print_row(const tk__table *table, size_t row, const size_t *widths, FILE *out,
                      unsigned indent)
{
    pad(out, indent);
    for (size_t c = 0; c < table->columns; c++) {
        const char *cell = table->cells[row * table->columns + c];
        const size_t space = widths[c] - tk__width(cell);
        const bool last = c + 1 == table->columns;
        if (table->align[c] == 'r') pad(out, space);
        fputs(cell, out);
        if (table->align[c] == 'l' && !last) pad(out, space);
        if (!last) pad(out, 2);
    }
    fputc('\n', out);
}

size_t tk__table_print(tk__table *table, FILE *out, unsigned indent)
{
    const size_t rows = table->n / table->columns;
    size_t *widths = tk__alloc(table->columns, sizeof(*widths));
    for (size_t i = 0; i < table->n; i++) {
        const size_t width = tk__width(table->cells[i]);
        if (width > widths[i % table->columns]) widths[i % table->columns] = width;
    }
    for (size_t row = 0; row < rows; row++)
        print_row(table, row, widths, out, indent);
    for (size_t i = 0; i < table->n; i++)
        free(table->cells[i]);
    free(table->cells);
    free(widths);
    *table = (tk__table){0};
    return rows;
}

const char *tk__percent(double fraction, char *buf, size_t size)
{
    snprintf(buf, size, "%.1f %%", 100 * fraction);
    return buf;
}

const char *tk__points(double difference, char *buf, size_t size)
{
    snprintf(buf, size, "%+.1f", fabs(difference) < 0.0005 ? 0.0 : 100 * difference);
    return buf;
}

const char *tk__bytes(uint64_t bytes, char *buf, size_t size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    size_t unit = 0;
    for (; value >= 1024 && unit + 1 < sizeof(units) / sizeof(units[0]); unit++)
        value /= 1024;
    snprintf(buf, size, "%.*f %s", unit == 0 || value >= 100 ? 0 : 1, value, units[unit]);
    return buf;
}

const char *tk__seconds(double seconds, char *buf, size_t size)
{
    if (!(seconds >= 0) || seconds > 1e7)
        snprintf(buf, size, "?");
    else if (seconds < 90)
        snprintf(buf, size, "%.0f s", seconds);
    else if (seconds < 5400)
        snprintf(buf, size, "%d min %d s", (int)seconds / 60, (int)seconds % 60);
    else
        snprintf(buf, size, "%d h %d min", (int)seconds / 3600, (int)seconds / 60 % 60);
    return buf;
}

const char *tk__when(int64_t ms, char *buf, size_t size)
{
    const time_t t = (time_t)(ms / 1000);
    struct tm tm;
    if (ms == 0 || !localtime_r(&t, &tm) || !strftime(buf, size, "%Y-%m-%d %H:%M:%S", &tm))
        snprintf(buf, size, "-");
    return buf;
}

void tk__bar(FILE *out, double fraction, unsigned width)
{
    const double bounded = fraction < 0 ? 0 : fraction > 1 ? 1 : fraction;
    const unsigned full = (unsigned)lround(bounded * width);
    fputc('[', out);
    for (unsigned i = 0; i < width; i++)
        fputc(i < full ? '#' : '-', out);
    fputc(']', out);
}

int64_t tk__now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void tk__progress_begin(tk__progress *progress, const char *what, uint64_t total, bool quiet)
{
    const int64_t now = tk__now_ns();
    *progress = (tk__progress){.what = what,
                               .total = total,
                               .tty = isatty(STDERR_FILENO) != 0,
                               .quiet = quiet,
                               .started_ns = now,
                               .shown_ns = now};
}

void tk__progress_at(tk__progress *progress, uint64_t done)
{
    const int64_t now = tk__now_ns(), pause = progress->tty ? 100000000 : 5000000000;
    if (progress->quiet || now - progress->shown_ns < pause) return;
    progress->shown_ns = now;
    const double fraction = progress->total ? (double)done / (double)progress->total : 0;
    const double elapsed = (double)(now - progress->started_ns) * 1e-9;
    char eta[32];
    tk__seconds(fraction > 0 ? elapsed * (1 - fraction) / fraction : -1, eta, sizeof(eta));
    fprintf(stderr, "%s%s ", progress->tty ? "\r\033[K" : "", progress->what);
    if (progress->tty) tk__bar(stderr, fraction, 30);
    fprintf(stderr, " %llu of %llu, %s left%s", (unsigned long long)done,
            (unsigned long long)progress->total, eta, progress->tty ? "" : "\n");
    fflush(stderr);
}

void tk__progress_end(tk__progress *progress)
{
    if (progress->tty && !progress->quiet && progress->shown_ns != progress->started_ns)
        fputs("\r\033[K", stderr);
}
