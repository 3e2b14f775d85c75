/* Arm's MPS2 board with image AN385, a Cortex-M3 at 25 MHz, as QEMU emulates it: vectors, SysTick, UART 0. */
#include "board.h"

#define CLOCK_HZ 25000000u
#define BAUD 921600u

static volatile uint32_t *const uart = (volatile uint32_t *)0x40004000; /* CMSDK APB UART 0 */
enum { UART_DATA = 0, UART_STATE = 1, UART_CONTROL = 2, UART_INTERRUPT = 3, UART_DIVIDER = 4 };
enum { TX_FULL = 1u << 0, RX_FULL = 1u << 1 };
enum { TX_ENABLE = 1u << 0, RX_ENABLE = 1u << 1, RX_INTERRUPT_ENABLE = 1u << 3 };
enum { RX_INTERRUPT = 1u << 1 };

static volatile uint32_t *const systick = (volatile uint32_t *)0xE000E010;
enum { TICK_CONTROL = 0, TICK_RELOAD = 1, TICK_VALUE = 2 };
enum { TICK_ENABLE = 1u << 0, TICK_INTERRUPT = 1u << 1, TICK_OF_CPU_CLOCK = 1u << 2 };

static volatile uint32_t *const interrupt_enable = (volatile uint32_t *)0xE000E100; /* NVIC; UART 0 receives on 0 */

void board_start(uint32_t tick_us)
{
    uart[UART_DIVIDER] = (CLOCK_HZ + BAUD / 2) / BAUD;
    uart[UART_CONTROL] = TX_ENABLE | RX_ENABLE | RX_INTERRUPT_ENABLE;
    interrupt_enable[0] = 1u << 0;

    systick[TICK_RELOAD] = CLOCK_HZ / 1000000u * tick_us - 1;
    systick[TICK_VALUE] = 0;
    systick[TICK_CONTROL] = TICK_ENABLE | TICK_INTERRUPT | TICK_OF_CPU_CLOCK;
}

void board_send(const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        while (uart[UART_STATE] & TX_FULL) {
        }
        uart[UART_DATA] = bytes[i];
    }
}

void board_sleep(void)
{
    __asm__ volatile("wfi" ::: "memory");
}

/* --- flash -------------------------------------------------------------------------------------------------------- */

/* Memory that QEMU keeps through a reset stands for it, and takes bits away only, as flash does. */
static uint8_t slots[2][BOARD_SLOT] __attribute__((section(".slots")));

const uint8_t *const board_slot[2] = {slots[0], slots[1]};

int board_erase(void *context, int slot)
{
    (void)context;
    for (size_t i = 0; i < BOARD_SLOT; i++) {
        slots[slot][i] = 0xFF;
    }
    return 0;
}

int board_write(void *context, int slot, uint32_t at, const uint8_t *bytes, size_t length)
{
    (void)context;
    for (size_t i = 0; i < length; i++) {
        slots[slot][at + i] &= bytes[i];
    }
    return 0;
}

static void uart_received(void)
{
    uart[UART_INTERRUPT] = RX_INTERRUPT;
    while (uart[UART_STATE] & RX_FULL) {
        on_byte((uint8_t)uart[UART_DATA]);
    }
}

/* --- start -------------------------------------------------------------------------------------------------------- */

extern uint32_t data_in_flash, data_begin, data_end, bss_begin, bss_end, stack_top;

void reset(void);

void reset(void)
{
    const uint32_t *from = &data_in_flash;
    for (uint32_t *to = &data_begin; to < &data_end;) {
        *to++ = *from++;
    }
    for (uint32_t *to = &bss_begin; to < &bss_end;) {
        *to++ = 0;
    }
    main();
    for (;;) {
    }
}

static void fault(void)
{
    for (;;) {
    }
}

typedef void (*vector)(void);

__attribute__((section(".vectors"), used)) static const vector vectors[17] = {
    (vector)(uintptr_t)&stack_top, reset, fault, fault, fault, fault, fault, fault, fault,
    fault, fault, fault, fault, fault, fault, on_tick, uart_received,
};
