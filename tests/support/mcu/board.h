/* What a test program needs of a board: bytes out, and an end. */
#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

void board_start(void);
void board_put(uint8_t byte);
/* Ends the emulator, with status 0 for 0 and 1 for anything else. */
void board_exit(int status);

int main(void);

#endif
