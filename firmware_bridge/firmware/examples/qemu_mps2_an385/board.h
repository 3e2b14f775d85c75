/* What main.c needs of its board. To port the example, write these for yours. */
#ifndef BOARD_H
#define BOARD_H

#include <stddef.h>
#include <stdint.h>

/* Starts UART (921,600 baud, 8 bits, no parity) and tick. |tick_us|: microseconds from tick to tick. */
void board_start(uint32_t tick_us);

/* Sends |length| bytes, and returns when the last one is in the transmitter. */
void board_send(const uint8_t *bytes, size_t length);

/* Sleeps until an interrupt. */
void board_sleep(void);

/* Two slots of BOARD_SLOT bytes that outlast a restart, readable as memory. Erase and write as fedmq_slots.h wants them. */
enum { BOARD_SLOT = 64 * 1024 };
extern const uint8_t *const board_slot[2];
int board_erase(void *context, int slot);
int board_write(void *context, int slot, uint32_t at, const uint8_t *bytes, size_t length);

/* main.c has these; the board calls them from interrupts. */
void on_tick(void);
void on_byte(uint8_t byte);

int main(void);

#endif
