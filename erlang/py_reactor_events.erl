%%% Events: what happens in the application, told to a function of the user.
%%%
%%% The shape is that of `telemetry', on which nothing depends here: `fun telemetry:execute/3' will do
%%% as the function. It is called in this process, one event after the other, so that nothing it does
%%% can hold up or end the process where the event happened. What is beyond ?MAX_WAITING events is
%%% dropped. That it failed, or that events were dropped, is logged once a minute at most.
%%%
%%% Messages: `{event, Event, Measurements, Metadata}'; `measure', its own reminder; what the user's
%%% function leaves behind, such as `{'EXIT', Pid, Reason}' of a process that it linked to.
-module(py_reactor_events).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/1, execute/3, set_handler/1, is_handler/1]).

%% gen_server callbacks
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([event/0, measurements/0, metadata/0, handler/0]).

-type event() :: [atom(), ...].
-type measurements() :: #{atom() => number()}.
-type metadata() :: #{atom() => term()}.
-type handler() ::
    undefined
    | {module(), Function :: atom()}
    | fun((event(), measurements(), metadata()) -> term()).

-record(state, {
    interval_ms :: pos_integer() | infinity,
    %% How often the function failed since the last line about it.
    crashes = 0 :: non_neg_integer(),
    %% Until then, in monotonic milliseconds, nothing more is logged about this function.
    quiet_until_ms :: integer(),
    logged = undefined :: handler()
}).

%% Events on their way to the function: more than a burst, a few megabytes at most.
-define(MAX_WAITING, 10000).

%% Between two log lines about the function.
-define(QUIET_MS, 60000).

%% Places of the shared counters.
-define(WAITING, 1).
-define(DROPPED, 2).

-spec start_link(py_reactor_settings:settings()) -> gen_server:start_ret().
start_link(#{measurement_interval_ms := IntervalMs}) ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, IntervalMs, []).

%% @doc Tells the user's function, if there is one, of an event. Never waits and never fails; without
%% a function it costs next to nothing. `time_ms' is added to the measurements: when it happened, by
%% the system's clock.
-spec execute(event(), measurements(), metadata()) -> ok.
execute(Event, Measurements, Metadata) ->
    case handler() of
        undefined -> ok;
        _ -> send(Event, Measurements#{time_ms => erlang:system_time(millisecond)}, Metadata)
    end.

%% @doc Sets the function at run time: the setting `event_handler'. `undefined' for none.
-spec set_handler(handler()) -> ok.
set_handler(Handler) ->
    case is_handler(Handler) of
        true -> application:set_env(py_reactor, event_handler, Handler);
        false -> error(badarg, [Handler])
    end.

%% @doc Whether a term can be the setting.
-spec is_handler(term()) -> boolean().
is_handler(undefined) -> true;
is_handler({Module, Function}) -> is_atom(Module) andalso is_atom(Function);
is_handler(Function) -> is_function(Function, 3).

%%--------------------------------------------------------------------------------------------------
%% gen_server

%% @private
-spec init(pos_integer() | infinity) -> {ok, #state{}}.
init(IntervalMs) ->
    %% A process that the function links to must not take this one along.
    process_flag(trap_exit, true),
    process_flag(message_queue_data, off_heap),
    ok = persistent_term:put(?MODULE, atomics:new(2, [])),
    remind(IntervalMs),
    {ok, #state{interval_ms = IntervalMs, quiet_until_ms = now_ms()}}.

%% @private
-spec handle_call(term(), gen_server:from(), #state{}) -> {reply, {error, unknown_call}, #state{}}.
handle_call(Call, _From, State) ->
    ?LOG_WARNING(#{what => unexpected_call, process => ?MODULE, call => Call}),
    {reply, {error, unknown_call}, State}.

%% @private
-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(Cast, State) ->
    ?LOG_WARNING(#{what => unexpected_cast, process => ?MODULE, cast => Cast}),
    {noreply, State}.

%% @private
-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info({event, Event, Measurements, Metadata}, State) ->
    atomics:sub(counts(), ?WAITING, 1),
    {noreply, say_dropped(tell(Event, Measurements, Metadata, State))};
handle_info(measure, #state{interval_ms = IntervalMs} = State) ->
    remind(IntervalMs),
    {noreply, lists:foldl(fun measured/2, State, measurements())};
handle_info({'EXIT', _Pid, Reason}, State) when Reason =:= normal; Reason =:= shutdown ->
    {noreply, State};
handle_info({'EXIT', _Pid, Reason}, State) ->
    {noreply, crashed(#{reason => Reason}, State)};
handle_info(Message, State) ->
    ?LOG_WARNING(#{what => unexpected_message, process => ?MODULE, message => Message}),
    {noreply, State}.

%%--------------------------------------------------------------------------------------------------

handler() ->
    application:get_env(py_reactor, event_handler, undefined).

counts() ->
    persistent_term:get(?MODULE).

%% The counters are there as long as Python is: since the first start of this process.
send(Event, Measurements, Metadata) ->
    case whereis(?MODULE) of
        undefined ->
            ok;
        Pid ->
            Counts = counts(),
            case atomics:add_get(Counts, ?WAITING, 1) > ?MAX_WAITING of
                true ->
                    atomics:sub(Counts, ?WAITING, 1),
                    atomics:add(Counts, ?DROPPED, 1);
                false ->
                    Pid ! {event, Event, Measurements, Metadata},
                    ok
            end
    end.

tell(Event, Measurements, Metadata, State) ->
    try call(handler(), Event, Measurements, Metadata) of
        _ -> State
    catch
        Class:Reason:Stack ->
            crashed(#{event => Event, class => Class, reason => Reason, stack => Stack}, State)
    end.

call(undefined, _Event, _Measurements, _Metadata) -> ok;
call({Module, Function}, Event, Measurements, Metadata) -> Module:Function(Event, Measurements, Metadata);
call(Function, Event, Measurements, Metadata) -> Function(Event, Measurements, Metadata).

crashed(How, #state{crashes = Crashes} = State) ->
    log(How#{what => event_handler_failed, times => Crashes + 1}, State#state{crashes = Crashes + 1}).

say_dropped(State) ->
    case atomics:get(counts(), ?DROPPED) of
        0 -> State;
        _ -> log(#{what => events_dropped, reason => "the event handler is too slow"}, State)
    end.

%% A report, unless the last one was less than a minute ago.
log(Report, #state{quiet_until_ms = QuietUntilMs} = State) ->
    Handler = handler(),
    case now_ms() >= QuietUntilMs orelse Handler =/= State#state.logged of
        true ->
            Dropped = atomics:exchange(counts(), ?DROPPED, 0),
            ?LOG_ERROR(Report#{handler => Handler, dropped => Dropped}),
            QuietMs = now_ms() + ?QUIET_MS,
            State#state{crashes = 0, quiet_until_ms = QuietMs, logged = Handler};
        false ->
            State
    end.

now_ms() ->
    erlang:monotonic_time(millisecond).

%%--------------------------------------------------------------------------------------------------
%% Measurements

remind(infinity) ->
    ok;
remind(IntervalMs) ->
    _ = erlang:send_after(IntervalMs, self(), measure),
    ok.

measurements() ->
    case handler() of
        undefined ->
            [];
        _ ->
            #{contexts := Contexts, listeners := Listeners} = py_reactor_metrics:figures(),
            [{[py_reactor, context, measurement], C} || C <- Contexts] ++
                [{[py_reactor, listener, measurement], L} || L <- Listeners]
    end.

measured({Event, {Metadata, Stats}}, State) ->
    Time = #{time_ms => erlang:system_time(millisecond)},
    tell(Event, maps:merge(flat(Stats), Time), Metadata, State).

%% Numbers only: `closed_by => #{eof => 1}' becomes `closed_by_eof => 1'. The names of the reasons are
%% few, and the same at all times.
flat(Stats) ->
    Nested = maps:get(closed_by, Stats, #{}),
    Reasons = [
        {list_to_atom("closed_by_" ++ atom_to_list(Reason)), Count}
     || {Reason, Count} <- maps:to_list(Nested)
    ],
    Numbers = maps:filter(fun(_, Value) -> is_integer(Value) end, Stats),
    maps:merge(Numbers, maps:from_list(Reasons)).
