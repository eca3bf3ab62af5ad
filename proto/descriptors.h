/* A google.protobuf.FileDescriptorSet of every file of proto/, packed: each file after those that
 * it imports. Made by protoc-c at build time. */
#ifndef PROTO_DESCRIPTORS_H
#define PROTO_DESCRIPTORS_H

#include <stddef.h>

extern const unsigned char tk_proto_descriptors[];
extern const size_t tk_proto_descriptors_size;

#endif
