/* Convolutions of small maps, one position of the map at a time (conv.h). At each position only the
 * taps that fall inside the image are multiplied, with the images of the batch as rows:
 *
 *     y[n][p][oc] = sum over the taps t inside at p, over ic: x[n][q(p, t)][ic] w[t][ic][oc]
 *
 * On a 2x2 map that is 4 of 9 taps. Any kernel, stride and padding will do. */
#ifndef NET_POSITIONS_H
#define NET_POSITIONS_H

#include "net/conv.h"

/* Floats of scratch that a thread needs for each of the functions below. */
size_t tk__positions_scratch(const tk__conv *geo);
/* Whole images. */
size_t tk__positions_block_rows(const tk__conv *geo);
void tk__positions_run(const tk__exec *ex, const tk__conv_job *job);
/* As tk__conv_dw(), without partial sums. Pays where the images that a task can hold are many. */
bool tk__positions_suit_dw(const tk__conv *geo);
void tk__positions_dw(const tk__exec *ex, const tk__conv *geo, const tk__input *in, const float *dy,
                      float *dw);
/* Cycles of an image as tk__conv_choose() counts them, all but the reading of weights. */
double tk__positions_cost(const tk__conv *geo);

#endif
