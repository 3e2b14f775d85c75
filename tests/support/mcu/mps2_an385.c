/* Vectors, UART and exit of the MPS2 board (AN385) in QEMU. */
#include "board.h"

/* CMSDK APB UART 0: data, state (bit 0: transmit buffer full), control (bit 0: transmit), baud rate divider. */
#define UART ((volatile uint32_t *)0x40004000)
enum { DATA = 0, STATE = 1, CONTROL = 2, DIVIDER = 4 };

#define SYS_EXIT 0x18
#define APPLICATION_EXIT 0x20026u
#define RUNTIME_ERROR 0x20023u

void board_start(void)
{
    UART[DIVIDER] = 16;
    UART[CONTROL] = 1;
}

void board_put(uint8_t byte)
{
    while (UART[STATE] & 1u) {
    }
    UART[DATA] = byte;
}

void board_exit(int status)
{
    /* Arm semihosting: the operation in r0, its argument in r1, and a breakpoint that QEMU takes up. */
    register uint32_t operation __asm__("r0") = SYS_EXIT;
    register uint32_t reason __asm__("r1") = status == 0 ? APPLICATION_EXIT : RUNTIME_ERROR;
    __asm__ volatile("bkpt 0xab" : : "r"(operation), "r"(reason) : "memory");
    for (;;) {
    }
}

extern uint32_t stack_top;

static void reset(void)
{
    board_start();
    board_exit(main());
}

static void fault(void)
{
    board_exit(1);
}

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))&stack_top, reset, fault, fault, fault, fault, fault, fault,
    fault, fault, fault, fault, fault, fault, fault, fault,
};
