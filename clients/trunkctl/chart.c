/* See chart.h. Numbers are written with a point, whatever the locale: trunkctl never sets one. */
#include "chart.h"

#include <math.h>
#include <stdlib.h>

#include "ctl.h"
#include "term.h"

enum {
    WIDTH = 860,
    LEFT = 64,
    TOP = 64,
    PLOT_W = 600,
    PLOT_H = 340,
    LEGEND_X = LEFT + PLOT_W + 20
};

/* Okabe & Ito's colours, which most colour-blind people tell apart, without the yellow. */
static const char *const colours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                      "#56b4e9", "#e69f00", "#000000"};
enum { COLOURS = sizeof colours / sizeof *colours };

typedef struct frame {
    const tk__chart *chart;
    FILE *out;
    double y_min, y_max;
} frame;

static double place_x(const frame *f, double x)
{
    return LEFT + PLOT_W * x / f->chart->x_max;
}

static double place_y(const frame *f, double y)
{
    return TOP + PLOT_H * (f->y_max - y) / (f->y_max - f->y_min);
}

/* Text with what XML reserves escaped, and what XML forbids replaced (term.h). */
static void put_text(FILE *out, const char *text)
{
    char *clean = tk__clean(text);
    for (const char *p = clean; *p; p++) {
        if (*p == '<')
            fputs("&lt;", out);
        else if (*p == '>')
            fputs("&gt;", out);
        else if (*p == '&')
            fputs("&amp;", out);
        else if (*p == '"')
            fputs("&quot;", out);
        else
            putc(*p, out);
    }
    free(clean);
}

static void label(const frame *f, double x, double y, const char *more, const char *text)
{
    fprintf(f->out, "<text x=\"%.1f\" y=\"%.1f\"%s>", x, y, more);
    put_text(f->out, text);
    fputs("</text>\n", f->out);
}

static void line(const frame *f, double x1, double y1, double x2, double y2, const char *style)
{
    fprintf(f->out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" %s/>\n", x1, y1, x2, y2,
            style);
}

/* 1, 2 or 5 times a power of ten, so that `range` has at most `most` steps of it. */
static double step_for(double range, double most)
{
    double step = pow(10, floor(log10(range / most)));
    if (range / step > most) step *= 2;
    if (range / step > most) step *= 2.5;
    if (range / step > most) step *= 2;
    return step;
}

/* The range of all values and floors, widened to whole steps, within 0..1. Returns the step. */
static double choose_range(frame *f)
{
    double low = 1, high = 0;
    for (size_t i = 0; i < f->chart->n; i++) {
        const tk__series *s = &f->chart->series[i];
        for (size_t k = 0; k < s->n; k++) {
            low = fmin(low, s->y[k]);
            high = fmax(high, s->y[k]);
        }
        if (!isnan(s->floor)) low = fmin(low, s->floor), high = fmax(high, s->floor);
    }
    if (low > high) low = 0, high = 1;
    const double step = step_for(fmax(high - low, 0.02), 6);
    f->y_min = fmax(0, step * floor(low / step));
    f->y_max = fmin(1, step * ceil(high / step));
    if (f->y_max <= f->y_min) f->y_max = f->y_min + step, f->y_min -= f->y_max > 1 ? step : 0;
    return step;
}

static void draw_axes(const frame *f, double y_step)
{
    const tk__chart *c = f->chart;
    char text[32];
    const double bottom = TOP + PLOT_H, x_step = fmax(1, step_for(c->until, 10));
    if (c->until < c->x_max) {
        fprintf(f->out,
                "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"#f2f2f2\"/>\n",
                place_x(f, c->until), TOP, LEFT + PLOT_W - place_x(f, c->until), PLOT_H);
        label(f, LEFT + PLOT_W, bottom + 42, " text-anchor=\"end\"", c->rest);
    }
    for (double y = f->y_min; y < f->y_max + y_step / 2; y += y_step) {
        line(f, LEFT, place_y(f, y), LEFT + PLOT_W, place_y(f, y), "stroke=\"#dddddd\"");
        snprintf(text, sizeof text, "%g", round(1e4 * y) / 100);
        label(f, LEFT - 8, place_y(f, y) + 4, " text-anchor=\"end\"", text);
    }
    for (double x = 0; x <= c->until + 1e-9; x += x_step) {
        line(f, place_x(f, x), bottom, place_x(f, x), bottom + 5, "stroke=\"#333333\"");
        snprintf(text, sizeof text, "%g", x);
        label(f, place_x(f, x), bottom + 20, " text-anchor=\"middle\"", text);
    }
    line(f, LEFT, bottom, LEFT + PLOT_W, bottom, "stroke=\"#333333\"");
    line(f, LEFT, TOP, LEFT, bottom, "stroke=\"#333333\"");
    label(f, LEFT, bottom + 42, "", c->x_label);
    label(f, LEFT, TOP - 10, " text-anchor=\"middle\"", c->y_label);
    label(f, LEFT, 24, " font-size=\"16\" font-weight=\"bold\"", c->title);
}

static void draw_series(const frame *f, size_t i)
{
    const tk__series *s = &f->chart->series[i];
    const char *colour = colours[i % COLOURS];
    char style[96];
    const double legend_y = TOP + 10 + 22 * (double)i;
    if (!isnan(s->floor)) {
        snprintf(style, sizeof style, "stroke=\"%s\" stroke-dasharray=\"6 4\"", colour);
        line(f, LEFT, place_y(f, s->floor), LEFT + PLOT_W, place_y(f, s->floor), style);
    }
    fprintf(f->out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"", colour);
    for (size_t k = 0; k < s->n; k++)
        fprintf(f->out, "%s%.1f,%.1f", k ? " " : "", place_x(f, s->x[k]), place_y(f, s->y[k]));
    fputs("\"/>\n", f->out);
    for (size_t k = 0; k < s->n; k++)
        fprintf(f->out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n",
                place_x(f, s->x[k]), place_y(f, s->y[k]), colour);
    snprintf(style, sizeof style, "stroke=\"%s\" stroke-width=\"2\"", colour);
    line(f, LEGEND_X, legend_y, LEGEND_X + 24, legend_y, style);
    char *name = tk__format("%s%s", s->name, s->note);
    label(f, LEGEND_X + 32, legend_y + 4, "", name);
    free(name);
}

bool tk__chart_write(const tk__chart *chart, FILE *out)
{
    frame f = {.chart = chart, .out = out};
    const double y_step = choose_range(&f);
    const size_t legend = TOP + 22 * (chart->n + 1), plot = TOP + PLOT_H + 60;
    const size_t height = legend > plot ? legend : plot;
    fprintf(out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" "
            "width=\"%d\" height=\"%zu\" viewBox=\"0 0 %d %zu\" font-family=\"sans-serif\" "
            "font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
            (int)WIDTH, height, (int)WIDTH, height);
    draw_axes(&f, y_step);
    for (size_t i = 0; i < chart->n; i++)
        draw_series(&f, i);
    const double key_y = TOP + 10 + 22 * (double)chart->n;
    line(&f, LEGEND_X, key_y, LEGEND_X + 24, key_y, "stroke=\"#666666\" stroke-dasharray=\"6 4\"");
    label(&f, LEGEND_X + 32, key_y + 4, "", "floor of the gate");
    fputs("</svg>\n", out);
    return !ferror(out);
}
