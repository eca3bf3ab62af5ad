# cmake -DIN=file -DOUT=file.c -P embed.cmake: the bytes of IN as the array that descriptors.h declares.
file(READ ${IN} bytes HEX)
string(REGEX REPLACE "(................................)" "\\1\n    " bytes "${bytes}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
file(WRITE ${OUT} "#include \"descriptors.h\"\n\nconst unsigned char tk_proto_descriptors[] = {\n    ${bytes}\n};\n"
                  "const size_t tk_proto_descriptors_size = sizeof tk_proto_descriptors;\n")
