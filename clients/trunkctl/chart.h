/* A line chart as SVG: one line per series, a dashed line at its floor, axes with ticks, a legend.
 */
#ifndef TRUNKCTL_CHART_H
#define TRUNKCTL_CHART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

typedef struct tk__series {
    const char *name, *note; /* the note follows the name in the legend */
    size_t n;
    double *x, *y; /* [n], x rising; y a fraction, shown in per cent */
    double floor;  /* NaN: none */
} tk__series;

typedef struct tk__chart {
    const char *title, *x_label, *y_label;
    double x_max; /* the axis goes from 0 to it */
    double until; /* behind this x is a band of its own, `rest`; x_max: no band */
    const char *rest;
    size_t n;
    const tk__series *series;
} tk__chart;

/* Writes an SVG document; all text is escaped. False: it could not be written. */
bool tk__chart_write(const tk__chart *chart, FILE *out);

#endif
